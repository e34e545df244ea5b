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
_PANEL = 0.75
"""In a table of several series at common times there are at most so many times to a row."""


def group(
    frame: polars.DataFrame, numeric: set[str], times: Times, name: str
) -> tuple[str, list[tuple[str, Rows]]] | None:
    """The column that tells series below each other apart, and each one's name as written and rows; None for one.

    ``frame`` has the columns but the times, ``numeric`` those of them that hold numbers. A column that is called as one
    of ``SERIES`` tells series apart wherever it has several entries that come again; another one where rows of the
    same time differ in it and no row of a series has the time of another. A column of numbers does so too if each time
    has all of its entries. Two columns do so together where one alone leaves rows with the same time. Refuses words
    that tell rows with the same time apart without telling series apart.
    """
    number = len(np.unique(times))
    repeated, panel = number < len(times), number <= _PANEL * len(times)
    candidates = [label for label in frame.columns if _may_name(frame[label])]
    candidates = [label for label in candidates if plain(label) not in NO_SERIES]
    called = sorted((label for label in candidates if plain(label) in SERIES), key=lambda one: SERIES.index(plain(one)))
    for label in called:
        entries = _entries(frame[label])
        kinds = entries.n_unique()
        sure = label not in numeric or plain(label) not in PERHAPS_SERIES
        if not sure and not _whole(frame[label]):
            continue
        if 1 < kinds <= len(entries) / 2 and (sure or (repeated and _unique(entries, times)) or _in_runs(entries)):
            return _with_second(frame, label, entries, [one for one in candidates if one not in called], numeric, times)
    if not repeated:
        return None
    candidates = [label for label in candidates if label not in numeric or _whole(frame[label])]
    for label in candidates if panel else []:
        entries = _entries(frame[label])
        kinds = entries.n_unique()
        if kinds < 2 or kinds > len(entries) / 2 or bool((entries == "").any()) or not _unique(entries, times):
            continue
        if label not in numeric or kinds * number == len(times):
            return label, _parts(entries)
    for label in candidates:
        if label not in numeric and plain(label) not in OF_A_TRADE:
            _refuse_untold(_entries(frame[label]), times, label, name)
    return None


def _with_second(
    frame: polars.DataFrame, label: str, entries: polars.Series, others: list[str], numeric: set[str], times: Times
) -> tuple[str, list[tuple[str, Rows]]]:
    """The parts by a column, or by it and a second one of words, such as an exchange, if only both tell all apart."""
    if not _unique(entries, times):
        for other in others:
            both = entries + " " + _entries(frame[other])
            if other not in numeric and both.n_unique() <= len(both) / 2 and _unique(both, times):
                return f"{label} {other}", _parts(both)
    return label, _parts(entries)


def _may_name(column: polars.Series) -> bool:
    import polars as pl

    kind = column.dtype
    if isinstance(kind, (pl.Categorical, pl.Enum)) or kind.is_integer():
        return True
    return kind == pl.String


def _whole(column: polars.Series) -> bool:
    return not bool(_entries(column).str.replace(r"\.0$", "").str.contains(r"[.,eE]").any())


def _in_runs(entries: polars.Series) -> bool:
    """Whether an entry changes seldom from row to row, as where series follow each other."""
    return int((entries != entries.shift(1)).sum()) <= len(entries) / 10


def _entries(column: polars.Series) -> polars.Series:
    import polars as pl

    # Spreadsheets keep noughts in front by writing ="0700" or '0700.
    return (
        column.cast(pl.String)
        .str.strip_chars()
        .str.replace(r'^="?(.*?)"?$', "${1}")
        .str.replace("^'", "")
        .fill_null("")
    )


def _unique(entries: polars.Series, times: Times) -> bool:
    import polars as pl

    return pl.DataFrame({"time": times, "entry": entries}).n_unique() == len(times)


def _parts(entries: polars.Series) -> list[tuple[str, Rows]]:
    import polars as pl

    table = pl.DataFrame({"entry": entries, "row": np.arange(len(entries))})
    parts = table.group_by("entry", maintain_order=True).agg("row")
    return [
        (entry or "(no name)", np.asarray(rows, np.int64))
        for entry, rows in zip(parts["entry"].to_list(), parts["row"].to_list(), strict=True)
    ]


def _refuse_untold(entries: polars.Series, times: Times, label: str, name: str) -> None:
    """Refuses a table in which a column of words tells rows with the same time apart, but not all of them.

    Words that never come twice, such as a row's own id, are no series; neither are empty cells.
    """
    import polars as pl

    told = pl.DataFrame({"time": times, "word": entries}).filter(pl.col("word") != "")
    kinds = told["word"].unique(maintain_order=True)
    most = told.group_by("time").agg(pl.col("word").n_unique())["word"].max()
    if len(kinds) < len(told) and isinstance(most, int) and most > 1:
        first = ", ".join(map(repr, kinds.head(3)))
        more = ", …" if len(kinds) > 3 else ""
        raise InvalidInputError(
            f"{name} holds {len(kinds)} kinds of rows below each other: rows with the same time differ in column "
            f"{label!r} ({first}{more}), and rows of one kind have the same time too; hand in a file with one kind, "
            "or call the column that names the series 'ticker'"
        )
