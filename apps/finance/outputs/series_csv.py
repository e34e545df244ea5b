"""A series as a CSV file in a form that common readers accept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from apps.finance.types import TRUTH, Series, Window, iso_utc


def write_csv(path: Path, series: Series, truth: Sequence[Window] = ()) -> None:
    """Writes ``timestamp`` (ISO 8601, UTC) and all value columns; a missing value is an empty cell.

    ``truth`` are the labelled windows of a synthetic series; a last column then holds the label of each row.
    """
    import polars as pl

    times = series.times_ns.tolist()
    frame = pl.DataFrame({"timestamp": [iso_utc(time) for time in times], **series.values}).fill_nan(None)
    if truth:
        kinds = [
            next((window.kind for window in truth if window.start_ns <= time <= window.end_ns), None) for time in times
        ]
        frame = frame.with_columns(pl.Series(TRUTH, kinds))
    frame.write_csv(path)
