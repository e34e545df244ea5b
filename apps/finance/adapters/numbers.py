"""Numbers as people write them in a column of text: decimal marks, thousands, currencies, K and M, missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from apps.finance.adapters.times import Lines
from apps.finance.types import Floats

if TYPE_CHECKING:
    import polars

MISSING = [
    *("", "na", "n/a", "n.a.", "nan", "null", "none", "nil", "<na>", "nat", "\\n", "-", "--", "–", "—", "?", ".", "/"),
    *("#n/a", "#n/a n/a", "#value!", "#ref!", "#div/0!", "#num!", "#name?", "无", "停牌"),
]
_CURRENCY = r"(?:US\$|HK\$|[$€£¥￥₹₩元]|USD|EUR|GBP|CHF|JPY|CNY|HKD|RMB)"
_SUFFIXES = {"k": 1e3, "m": 1e6, "b": 1e9, "bn": 1e9, "t": 1e12, "万": 1e4, "亿": 1e8, "万亿": 1e12}
_SUFFIX = r"(?i)(\d) ?(k|m|bn|b|t|万亿|万|亿)$"
_WITH_POINT = r"^[+-]?([1-9]\d{0,2}(,\d{2})*(,\d{3})+|\d*)(\.\d*)?([eE][+-]?\d+)?$"
_WITH_COMMA = r"^[+-]?([1-9]\d{0,2}(\.\d{3})+|\d*)(,\d*)?([eE][+-]?\d+)?$"
_LARGEST = 1e100
"""Larger numbers are none that somebody measured, and their squares and sums are no numbers any more."""


def find_decimal(frame: polars.DataFrame) -> str | None:
    """The decimal mark that the columns of text in a table tell of, where they agree."""
    import polars as pl

    told = set()
    for label in frame.columns:
        if frame[label].dtype == pl.String and bool(frame[label].str.contains("[.,]").any()):
            text, _, _ = _bare(frame[label])
            marks = _possible_marks(text)
            told |= marks if len(marks) == 1 else set()
    return told.pop() if len(told) == 1 else None


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
    if bool(column.str.contains(r"^-?\d{1,15}$").all()) and not column.null_count():
        return column.cast(pl.Float64).to_numpy().astype(np.float64), ""
    text, missing, factor = _bare(column)
    if missing.all():
        return np.full(len(text), np.nan), ""
    marks = _possible_marks(text)
    if len(marks) == 2 and decimal is None:
        marked = text.str.contains("[.,]")
        row = int(marked.arg_max() or 0)
        comma = "," in str(text[row]) and bool(marked.any())
        if comma != semicolons and bool(marked.any()):
            written = str(text[row])
            either = f"{written.replace(',', '').replace('.', '')} or {written.replace(',', '.')}"
            where, how = ("", "without the comma") if comma else ("between semicolons ", "with one more decimal")
            return None, (
                f"holds {written!r} in line {lines[row]}, which {where}can be {either} (write it {how}, or give the "
                "option decimal)"
            )
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
    if not len(cells):
        return {".", ","}
    forms = ((".", _WITH_POINT), (",", _WITH_COMMA))
    return {mark for mark, form in forms if bool(cells.str.contains(form).all())}


def _bare(column: polars.Series) -> tuple[polars.Series, polars.Series, Floats | float]:
    """Cells without currency, per cent and spaces; which of them are missing; and what K, M or 万 multiply by."""
    import polars as pl

    text = column.fill_null("").str.replace_all("[\u00a0\u202f\u2009]", " ").str.strip_chars().str.strip_chars("'")
    missing = text.str.to_lowercase().is_in(MISSING)
    text = text.str.replace_all(r"(\d)[ '’](\d{3})", "${1}${2}").str.replace_all(r"(\d)[ '’](\d{3})", "${1}${2}")
    if not bool((text.str.contains(r"[^0-9eE.,+-]") | text.str.contains(r"-$|^\+")).any()):
        return text, missing, 1.0
    # Accounts write a loss as (1,234.50), others as 1,234.50-.
    text = text.str.replace(rf"^\(({_CURRENCY}?[\d.,]+)\)$", "-${1}").str.replace(r"^([\d.,]+)-$", "-${1}")
    text = text.str.replace(rf"^([+-]?){_CURRENCY} ?", "${1}").str.replace(rf" ?(?:%|{_CURRENCY})$", "")
    text = text.str.replace(r"^\+", "")
    ends = text.str.extract(_SUFFIX, 2).str.to_lowercase()
    if ends.null_count() == len(ends):
        return text, missing, 1.0
    factor = ends.replace_strict(_SUFFIXES, default=1.0, return_dtype=pl.Float64)
    return text.str.replace(_SUFFIX, "${1}"), missing, factor.to_numpy()


def _finite(numbers: Floats, written: polars.Series, lines: Lines) -> tuple[Floats | None, str]:
    numbers = np.where(np.isinf(numbers), np.nan, numbers)
    large = np.abs(numbers) > _LARGEST
    if large.any():
        row = int(np.argmax(large))
        return None, f"holds {written[row]} in line {lines[row]}, which is no number that can be reckoned with"
    return numbers, ""
