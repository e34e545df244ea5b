"""A series as a CSV file that every reader of this application and of others reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from apps.finance.types import TRUTH, Series, Window, iso_utc


def write_csv(path: Path, series: Series, truth: Sequence[Window] = ()) -> None:
    """Writes ``timestamp`` (ISO 8601, UTC) and all value columns; a missing value is an empty cell.

    ``truth`` are windows that are known of a synthetic series: a last column then says what is true of each row.
    """
    import polars as pl

    times = series.times_ns.tolist()
    frame = pl.DataFrame({"timestamp": [iso_utc(time) for time in times], **series.values}).fill_nan(None)
    if truth:
        kinds = [next((one.kind for one in truth if one.start_ns <= time <= one.end_ns), None) for time in times]
        frame = frame.with_columns(pl.Series(TRUTH, kinds))
    frame.write_csv(path)
