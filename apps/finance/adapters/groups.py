"""Several series below each other in one table: which column tells them apart, and which rows are whose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from apps.finance.adapters.columns import NO_SERIES, OF_A_TRADE, PERHAPS_SERIES, SERIES, plain
from apps.finance.types import Times
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    import polars

Rows = NDArray[np.int64]
Grouping = tuple[str, list[tuple[str, Rows]]]


def by_column(frame: polars.DataFrame, label: str) -> Grouping:
    """The series that a column names: the column, and each one's name as written and rows."""
    return label, _parts(_entries(frame[label]))


def group(frame: polars.DataFrame, numeric: set[str], times: Times, name: str) -> Grouping | None:
    """The column that tells series below each other apart, with its series; None for one series.

    ``frame`` has the columns but the times, ``numeric`` those of them that hold numbers. A column that is called as one
    of ``SERIES`` tells series apart wherever it has several entries that come again; another one where rows of the
    same time differ in it and no row of a series has the time of another. A column of numbers does so too if each time
    has all of its entries. Two columns do so together where one alone leaves rows with the same time. Refuses words
    that tell rows with the same time apart without telling series apart.
    """
    number, rows = len(np.unique(times)), len(times)
    repeated = number < rows
    entries = {
        one: _entries(frame[one]) for one in frame.columns if _may_name(frame[one]) and plain(one) not in NO_SERIES
    }
    fitting = {one: found for one, found in entries.items() if 1 < found.n_unique() <= rows / 2}
    for label in sorted((one for one in fitting if plain(one) in SERIES), key=lambda one: SERIES.index(plain(one))):
        found = fitting[label]
        perhaps = label in numeric and plain(label) in PERHAPS_SERIES
        if perhaps and not (_whole(found) and repeated and _tells_all_apart(found, times)):
            continue
        if not _tells_all_apart(found, times):
            for other in (one for one in entries if one not in numeric and plain(one) not in SERIES):
                both = found + " " + entries[other]
                if both.n_unique() <= rows / 2 and _tells_all_apart(both, times):
                    return f"{label} {other}", _parts(both)
        return label, _parts(found)
    if not repeated:
        return None
    # In a table of several series at common times there are at least four rows to three times.
    for label, found in fitting.items() if number <= 0.75 * rows else ():
        whole = label not in numeric or (_whole(found) and found.n_unique() * number == rows)
        if whole and not bool((found == "").any()) and _tells_all_apart(found, times):
            return label, _parts(found)
    for label, found in entries.items():
        if label not in numeric and plain(label) not in OF_A_TRADE:
            _refuse_untold(found, times, label, name)
    return None


def _may_name(column: polars.Series) -> bool:
    import polars as pl

    return column.dtype.is_integer() or column.dtype == pl.String


def _whole(entries: polars.Series) -> bool:
    return not bool(entries.str.replace(r"\.0$", "").str.contains(r"[.,eE]").any())


def _entries(column: polars.Series) -> polars.Series:
    import polars as pl

    # Spreadsheets keep zeros in front by writing ="0700" or '0700.
    text = column.cast(pl.String).str.strip_chars().str.replace(r'^="?(.*?)"?$', "${1}")
    return text.str.replace("^'", "").fill_null("")


def _tells_all_apart(entries: polars.Series, times: Times) -> bool:
    import polars as pl

    return pl.DataFrame({"time": times, "entry": entries}).n_unique() == len(times)


def _parts(entries: polars.Series) -> list[tuple[str, Rows]]:
    import polars as pl

    table = pl.DataFrame({"entry": entries, "row": np.arange(len(entries))})
    parts = table.group_by("entry", maintain_order=True).agg("row")
    return [(entry or "(no name)", np.asarray(rows, np.int64)) for entry, rows in parts.iter_rows()]


def _refuse_untold(entries: polars.Series, times: Times, label: str, name: str) -> None:
    """Refuses a table in which a column of words tells rows with the same time apart, but not all of them."""
    import polars as pl

    told = pl.DataFrame({"time": times, "word": entries}).filter(pl.col("word") != "")
    kinds = told["word"].unique(maintain_order=True)
    most = told.group_by("time").agg(pl.col("word").n_unique())["word"].max()
    # Words that never come twice, such as a row's own id, are no series.
    if len(kinds) < len(told) and isinstance(most, int) and most > 1:
        first = ", ".join(map(repr, kinds.head(3))) + (", …" if len(kinds) > 3 else "")
        raise InvalidInputError(
            f"{name} holds {len(kinds)} kinds of rows below each other: rows with the same time differ in column "
            f"{label!r} ({first}), and rows of one kind have the same time too; hand in a file with one kind, "
            "or name the column that names the series with the option 'series'"
        )
