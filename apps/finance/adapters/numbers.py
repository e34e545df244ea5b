"""Numbers as people write them in a column of text: decimal marks, thousands, currencies, K and M, missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from apps.finance.adapters.clock import Lines
from apps.finance.types import Floats

if TYPE_CHECKING:
    import polars

MISSING = (
    *("", "na", "n/a", "n.a.", "nan", "null", "none", "nil", "<na>", "nat", "\\n", "-", "--", "–", "—", "?", ".", "/"),
    *("#n/a", "#n/a n/a", "#value!", "#ref!", "#div/0!", "#num!", "#name?", "无", "停牌"),
)
_CURRENCY = r"(?:US\$|HK\$|[$€£¥￥₹₩元]|USD|EUR|GBP|CHF|JPY|CNY|HKD|RMB)"
_SUFFIXES = {"k": 1e3, "m": 1e6, "b": 1e9, "bn": 1e9, "t": 1e12, "万": 1e4, "亿": 1e8, "万亿": 1e12}


@dataclass(frozen=True, slots=True)
class Marks:
    """What a file says of its commas: ``decimal`` that they are decimal marks, or that they are not, None nothing.

    Between ``semicolons`` decimal commas are likely.
    """

    decimal: bool | None = None
    semicolons: bool = False


def find_marks(frame: polars.DataFrame, *, semicolons: bool) -> Marks:
    """What the columns of text in a table say of its commas, by those cells that can mean one thing alone."""
    import polars as pl

    german = english = False
    for label in frame.columns:
        if frame[label].dtype == pl.String:
            text = frame[label].drop_nulls().str.strip_chars()
            german |= bool(text.str.contains(r"^[+-]?(\d{1,3}(\.\d{3})+|\d+),(\d{1,2}|\d{4,})$|^[+-]?0,\d+$").any())
            english |= bool(text.str.contains(r"^[+-]?(\d{1,3}(,\d{3})+|\d+)\.(\d{1,2}|\d{4,})$").any())
    return Marks(german if german != english else None, semicolons)


_LARGEST = 1e100
"""Larger numbers are none that somebody measured, and their squares and sums are no numbers any more."""


def read_column(column: polars.Series, lines: Lines, marks: Marks = Marks()) -> tuple[Floats | None, str]:
    """The numbers in a column, NaN where missing; None for a column of text; and what is wrong with it, if anything.

    ``marks`` is what the file says of its commas.
    """
    import polars as pl

    if column.dtype == pl.Float32:
        # As it would be written: 100.13, not the 100.12999725341797 that is next to it.
        column = column.cast(pl.String).cast(pl.Float64)
    if column.dtype.is_numeric():
        return _finite(column.cast(pl.Float64).to_numpy().astype(np.float64), column, lines)
    if column.dtype != pl.String:
        return None, ""
    text = column.fill_null("").str.replace_all("[\u00a0\u202f\u2009]", " ").str.strip_chars().str.strip_chars("'")
    missing = text.str.to_lowercase().is_in(list(MISSING))
    if missing.all():
        return np.full(len(text), np.nan), ""
    text, factor = _bare(text)
    text, fault = _points(text, lines, marks)
    if fault:
        return None, fault
    parsed = text.cast(pl.Float64, strict=False)
    bad = parsed.is_null() & ~missing
    if int(bad.sum()) > 0.5 * int((~missing).sum()):
        return None, ""
    if bad.any():
        row = int(bad.arg_max() or 0)
        return None, f"holds {column[row]!r} in line {lines[row]}, which is no number"
    numbers = parsed.to_numpy().astype(np.float64)
    if factor is not None:
        numbers = numbers * factor
    numbers[missing.to_numpy()] = np.nan
    return _finite(numbers, column, lines)


def _finite(numbers: Floats, written: polars.Series, lines: Lines) -> tuple[Floats | None, str]:
    numbers = np.where(np.isinf(numbers), np.nan, numbers)
    large = np.abs(numbers) > _LARGEST
    if large.any():
        row = int(np.argmax(large))
        return None, f"holds {written[row]} in line {lines[row]}, which is no number that can be reckoned with"
    return numbers, ""


def _bare(text: polars.Series) -> tuple[polars.Series, Floats | None]:
    """Numbers without currency and per cent, minus in front, and what K, M or 万 behind them multiply by, if any do."""
    import polars as pl

    if not bool(text.str.contains(r"[^0-9eE.,+-]").any() | text.str.contains(r"-$").any()):
        return text, None
    # Accounts write a loss as (1,234.50), others as 1,234.50-.
    text = text.str.replace(rf"^\(({_CURRENCY}?[\d.,]+)\)$", "-${1}").str.replace(r"^([\d.,]+)-$", "-${1}")
    text = text.str.replace(rf"^([+-]?){_CURRENCY} ?", "${1}").str.replace(rf" ?(?:%|{_CURRENCY})$", "")
    text = text.str.replace(r"^\+", "")
    suffixed = r"(?i)^-?[\d.,]*\d ?(k|m|bn|b|t|万亿|万|亿)$"
    ends = text.str.extract(suffixed, 1).str.to_lowercase()
    if ends.null_count() == len(ends):
        return text, None
    factor = ends.replace_strict(_SUFFIXES, default=1.0, return_dtype=pl.Float64)
    return text.str.replace(r"(?i) ?(k|m|bn|b|t|万亿|万|亿)$", ""), factor.to_numpy()


def _points(text: polars.Series, lines: Lines, marks: Marks) -> tuple[polars.Series, str]:
    """Numbers as text with a decimal point and nothing between the thousands; and what cannot be told, if anything.

    10,003.77 and 1,234,567 say that commas part the thousands, 10.003,77 and 0,5 that a comma is the decimal mark;
    1,234 alone says neither. Where a file's other columns have decimal commas, 1.234 is a thousand.
    """
    text = text.str.replace_all(r"(\d)['’](\d{3})", "${1}${2}").str.replace_all(r"(\d)['’](\d{3})", "${1}${2}")
    comma = text.str.contains(",", literal=True)
    if not comma.any():
        return _dots(text, lines, marks)
    parted = text.str.contains(r"^[+-]?[1-9]\d{0,2}(,\d{2})*(,\d{3})+(\.\d+)?$")
    if (parted | ~comma).all():
        told = text.str.contains(r",.*[.,]|^[+-]?\d+\.(\d{1,2}|\d{4,})$|^[+-]?(0|\d{4,})\.\d+$").any()
        if told or marks.decimal is False:
            return text.str.replace_all(",", "", literal=True), ""
        if marks.decimal is None and not marks.semicolons:
            row = int(comma.arg_max() or 0)
            either = f"{text[row].replace(',', '')} or {text[row].replace(',', '.')}"
            return text, f"holds {text[row]!r} in line {lines[row]}, which can be {either} (write it without the comma)"
    german = text.str.contains(r"^[+-]?\d{1,3}([. ]?\d{3})*,\d+$|^[+-]?\d+,\d+$").any()
    english = text.str.contains(r"^[+-]?\d+\.(\d{1,2}|\d{4,})$|,.*\.").any()
    if german and not english:
        return text.str.replace_all(r"[. ]", "").str.replace(",", ".", literal=True), ""
    return text, ""


def _dots(text: polars.Series, lines: Lines, marks: Marks) -> tuple[polars.Series, str]:
    text = text.str.replace_all(r"(\d) (\d{3})", "${1}${2}").str.replace_all(r"(\d) (\d{3})", "${1}${2}")
    dot = text.str.contains(".", literal=True)
    parted = text.str.contains(r"^[+-]?[1-9]\d{0,2}(\.\d{3})+$")
    if not dot.any() or not (parted | ~dot).all():
        return text, ""
    twice = bool(text.str.contains(r"\..*\.").any())
    if twice or marks.decimal is True:
        return text.str.replace_all(".", "", literal=True), ""
    if marks.decimal is None and marks.semicolons:
        row = int(dot.arg_max() or 0)
        written = text[row]
        return text, (
            f"holds {written!r} in line {lines[row]}, which between semicolons can be {written.replace('.', '')} "
            "or a decimal number (write it without thousands separators and with one more decimal)"
        )
    return text, ""
