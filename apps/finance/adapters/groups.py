"""Several series below each other in one table: which column tells them apart, and which rows are whose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from apps.finance.adapters.columns import NOTES, OF_A_TRADE, PERHAPS_SERIES, SERIES, plain
from apps.finance.types import Times
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    import polars

Rows = NDArray[np.int64]
Grouping = tuple[str, list[tuple[str, Rows]]]


def by_column(frame: polars.DataFrame, label: str) -> Grouping:
    """The series that a column names: the column, and each one's name as written and rows."""
    import polars as pl

    table = pl.DataFrame({"entry": _entries(frame[label]), "row": np.arange(frame.height)})
    parts = table.group_by("entry", maintain_order=True).agg("row")
    return label, [(entry or "(no name)", np.asarray(rows, np.int64)) for entry, rows in parts.iter_rows()]


def group(frame: polars.DataFrame, numeric: set[str], times: Times, name: str) -> Grouping | None:
    """The column that tells series below each other apart, with its series; None for one series.

    ``frame`` has the columns but the times, ``numeric`` those of them that hold numbers. It is a column that is called
    as one of ``SERIES`` and has several entries that come again. Refuses a table in which other words tell rows with
    the same time apart, so that they may name series.
    """
    import polars as pl

    named = [
        label
        for label in frame.columns
        if plain(label) in SERIES
        and not (label in numeric and plain(label) in PERHAPS_SERIES)
        and 1 < frame[label].n_unique() <= frame.height / 2
    ]
    label = min(named, key=lambda one: SERIES.index(plain(one)), default=None)
    for other in frame.columns:
        if frame[other].dtype == pl.String and other not in numeric and plain(other) not in (*SERIES, *NOTES):
            _refuse_if_series(frame, label, other, times, name)
    return None if label is None else by_column(frame, label)


def _entries(column: polars.Series) -> polars.Series:
    import polars as pl

    return column.cast(pl.String, strict=False).str.strip_chars().fill_null("")


def _refuse_if_series(frame: polars.DataFrame, label: str | None, other: str, times: Times, name: str) -> None:
    """Refuses a table in which ``other`` tells rows apart that have one time in one series of column ``label``.

    Trades at one time may differ in their exchange; where they do not share a time within an exchange, they are series.
    """
    import polars as pl

    key = pl.lit("") if label is None else _entries(frame[label])
    table = pl.select(time=pl.Series(times), key=key, word=_entries(frame[other])).filter(pl.col("word") != "")
    kinds = table["word"].unique(maintain_order=True)
    differ = table.group_by("time", "key").agg(pl.col("word").n_unique())["word"].max()
    # Words that never come twice, such as a row's own id, name no series.
    if len(kinds) > table.height / 2 or not isinstance(differ, int) or differ < 2:
        return
    if plain(other) not in OF_A_TRADE or (table.height == frame.height and table.n_unique() == table.height):
        first = ", ".join(map(repr, kinds.head(3))) + (", …" if len(kinds) > 3 else "")
        raise InvalidInputError(
            f"{name}: rows with the same time differ in column {other!r} ({first}); if it names the series, give it as "
            "the option 'series', else hand in a file with one kind of rows"
        )
