"""Numbers in a column of text: decimal marks, thousands, currency signs, per cent, K and M, missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from apps.finance.adapters.times import Lines
from apps.finance.types import Floats

if TYPE_CHECKING:
    import polars

MISSING = ["", "na", "n/a", "nan", "null", "none", "<na>", "nat", "\\n", "-", "--", "—", ".", "#n/a", "无", "停牌"]
_SUFFIXES = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12, "万": 1e4, "亿": 1e8}
_SUFFIX = r"(?i)(\d) ?(k|m|b|t|万|亿)$"
_WITH_POINT = r"^[+-]?([1-9]\d{0,2}(,\d{2})*(,\d{3})+|\d*)(\.\d*)?([eE][+-]?\d+)?$"
_WITH_COMMA = r"^[+-]?([1-9]\d{0,2}(\.\d{3})+|\d*)(,\d*)?([eE][+-]?\d+)?$"
_LARGEST = 1e100
"""Larger numbers are none that somebody measured, and their squares and sums are no numbers any more."""


def read_column(
    column: polars.Series, lines: Lines, *, decimal: str | None = None, semicolons: bool = False
) -> tuple[Floats | None, str]:
    """The numbers in a column, NaN where missing; None for a column of text; and what is wrong with it, if anything.

    ``decimal`` is the decimal mark of cells that may be read with either: 1,234 and 1.234. Without it 1.234 has a
    point, unless ``semicolons`` part the cells; 1,234 has a decimal comma between semicolons, and is a fault elsewhere.
    """
    import polars as pl

    if column.dtype == pl.Float32:
        # As it would be written: 100.13, not the 100.12999725341797 that is next to it.
        column = column.cast(pl.String).cast(pl.Float64)
    if column.dtype.is_numeric():
        return _finite(column.cast(pl.Float64).to_numpy().astype(np.float64), column, lines)
    if column.dtype != pl.String:
        return None, ""
    text = column.fill_null("").str.replace_all("[\u00a0\u202f]", " ").str.strip_chars()
    missing = text.str.to_lowercase().is_in(MISSING)
    if missing.all():
        return np.full(len(text), np.nan), ""
    text = text.str.replace(r"^([+-]?)[$€£¥￥]", "${1}").str.replace(r" ?[%€]$", "").str.replace(r"^\+", "")
    ends = text.str.extract(_SUFFIX, 2).str.to_lowercase()
    factor = ends.replace_strict(_SUFFIXES, default=1.0, return_dtype=pl.Float64).to_numpy()
    text = text.str.replace(_SUFFIX, "${1}")
    marks = _possible_marks(text)
    marked = text.filter(text.str.contains(r"^[+-]?\d+[.,]\d"))
    if len(marks) == 2 and decimal is None and len(marked):
        comma = "," in marked[0]
        if comma != semicolons:
            line = lines[int(text.str.contains(r"^[+-]?\d+[.,]\d").arg_max() or 0)]
            either = f"{marked[0].replace(',', '').replace('.', '')} or {marked[0].replace(',', '.')}"
            return None, f"holds {marked[0]!r} in line {line}, which can be {either} (give the option decimal)"
        decimal = "," if comma else "."
    mark = decimal if len(marks) == 2 and decimal else next(iter(marks), decimal or ".")
    other = "," if mark == "." else "."
    parsed = text.str.replace_all(other, "", literal=True).str.replace(",", ".", literal=True)
    numbers = (parsed if marks else text).cast(pl.Float64, strict=False)
    bad = numbers.is_null() & ~missing
    if int(bad.sum()) > 0.5 * int((~missing).sum()):
        return None, ""
    if bad.any():
        row = int(bad.arg_max() or 0)
        return None, f"holds {column[row]!r} in line {lines[row]}, which is no number"
    values = numbers.to_numpy().astype(np.float64) * factor
    values[missing.to_numpy()] = np.nan
    return _finite(values, column, lines)


def _possible_marks(text: polars.Series) -> set[str]:
    """The decimal marks with which all cells that look like numbers can be read; both where no cell tells."""
    cells = text.filter(text.str.contains(r"^[+-]?[\d.,]+([eE][+-]?\d+)?$"))
    forms = ((".", _WITH_POINT), (",", _WITH_COMMA))
    return {mark for mark, form in forms if bool(cells.str.contains(form).all())}


def _finite(numbers: Floats, written: polars.Series, lines: Lines) -> tuple[Floats | None, str]:
    numbers = np.where(np.isinf(numbers), np.nan, numbers)
    large = np.abs(numbers) > _LARGEST
    if large.any():
        row = int(np.argmax(large))
        return None, f"holds {written[row]} in line {lines[row]}, which is no number that can be reckoned with"
    return numbers, ""
