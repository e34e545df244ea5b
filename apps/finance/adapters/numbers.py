"""Numbers in a column of text: decimal marks, thousands, currency signs, per cent, K and M, missing."""

from __future__ import annotations

import numpy as np
import polars as pl

from apps.finance.adapters.times import Rows
from apps.finance.types import Floats

_MISSING = ["", "na", "n/a", "nan", "null", "none", "<na>", "nat", "\\n", "-", "--", "—", ".", "#n/a", "无", "停牌"]
_SUFFIXES = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12, "万": 1e4, "亿": 1e8}
_SUFFIX = r"(?i)(\d) ?(k|m|b|t|万|亿)$"
_FORM = r"^[+-]?([1-9]\d{0,2}([%s]\d{2})*([%s]\d{3})+|\d*)([%s]\d*)?([eE][+-]?\d+)?$"
_FORMS = {".": _FORM % (",", ",", "."), ",": _FORM % (".", ".", ",")}
"""A number by its decimal mark; the other mark may stand between thousands, as in India also between hundreds."""
_DIGITS = r"^[+-]?[\d.,]+([eE][+-]?\d+)?$"
_GROUPED = r"^[+-]?\d{1,3}([ '’]\d{3})+([.,]\d*)?$"
"""With spaces, also narrow ones, or apostrophes between thousands."""
_SPACES = "[\u00a0\u2009\u202f]"
_NO_ANSWER = "#n/a "  # Bloomberg's #N/A N/A and its other reasons
_DATE = r"^\d{1,4}[./-]\d{1,2}[./-]\d{1,4}"
_NEARLY = (
    r"^[(+\-\u2212]?(?:[A-Z]{3}|R\$)? ?[(+\-\u2212]?[$€£¥]? ?\d[\d.,'’ \u00a0\u202f]*\)?"
    r"(?: ?(?:[A-Z]{3}|bps?|Mrd|Mio|[$€£¥%]))?$"
)
"""An amount with its currency or unit, or in brackets."""
_IN_BRACKETS = r"^\(([$€£¥￥]?\d[\d.,'’ ]*)\)$"
"""A negative amount, as in accounts."""
_LARGEST = 1e100  # larger ones nobody measured, and their squares and sums are no numbers any more


def read_column(column: pl.Series, lines: Rows, decimal: str | None, european: bool) -> tuple[Floats | None, str]:
    """The numbers in a column, NaN where missing; None for a column of text; and what is wrong with it, if anything.

    ``decimal`` is the decimal mark of cells that may be read with either: 1,234 and 1.234. Without it 1.234 has a
    point and 1,234 is a fault; in a ``european`` table 1,234 has a decimal comma and 1.234 is a fault.
    """
    if column.dtype == pl.Float32:  # as it would be written: 100.13, not the 100.12999725341797 that is next to it
        column = column.cast(pl.String).cast(pl.Float64)
    if column.dtype != pl.String and not column.dtype.is_numeric():
        return None, ""
    factor, missing = np.ones(len(column)), column.is_null()
    numbers, beside = column.cast(pl.Float64, strict=False), None
    if column.dtype == pl.String and (european or decimal == "," or numbers.null_count() > missing.sum()):
        text = column.fill_null("").str.replace_all(_SPACES, " ").str.strip_chars()
        missing = _is_missing(text)
        text, factor = _bare(text)
        digits = text.str.contains(_DIGITS)
        odd = {mark: digits & ~text.str.contains(form) for mark, form in _FORMS.items()}
        marks = [mark for mark in _FORMS if not odd[mark].any()]
        marked = digits & text.str.contains(r"^[+-]?\d+[.,]\d")
        mark = (marks or [decimal or min(odd, key=lambda one: int(odd[one].sum()))])[0]
        mark = decimal if len(marks) == 2 and decimal else mark
        if len(marks) == 2 and decimal is None and marked.any():
            row = int(marked.arg_max() or 0)
            mark = "," if "," in text[row] else "."
            if (mark == ",") != european:
                either = f"{text[row].replace(mark, '')} or {text[row].replace(',', '.')} (give the option decimal)"
                return None, f"holds {text[row]!r} in line {lines[row]}, which can be {either}"
        fit = digits & ~odd[mark]
        beside = ((fit & marked) if (fit & marked).any() else fit).arg_max() if odd[mark].any() and fit.any() else None
        text = text.str.replace_all({",": ".", ".": ","}[mark], "", literal=True).set(odd[mark], "odd")
        numbers = text.str.replace(",", ".", literal=True).cast(pl.Float64, strict=False)
    bad = numbers.is_null() & ~missing
    if int(bad.sum()) > 0.5 * int((~missing).sum()):
        return None, ""
    values = numbers.fill_null(np.nan).to_numpy() * factor
    wrong = bad.to_numpy() | (np.isfinite(values) & (np.abs(values) > _LARGEST))
    if wrong.any():
        row = int(np.argmax(wrong))
        why = "that can be reckoned with" if beside is None else f"beside {column[beside]!r} in line {lines[beside]}"
        return None, f"holds {column[row]!r} in line {lines[row]}, which is no number {why}"
    return values, ""


def _is_missing(text: pl.Series) -> pl.Series:
    """(N,) which cells say that there is no value."""
    lower = text.str.to_lowercase()
    return lower.is_in(_MISSING) | lower.str.starts_with(_NO_ANSWER)


def _bare(text: pl.Series) -> tuple[pl.Series, Floats]:
    """(N,) cells without brackets, currency signs, suffixes, and spaces between digits; and their factors, (N,)."""
    text = text.str.replace(_IN_BRACKETS, "-${1}")
    text = text.str.replace(r"^([+-]?)[$€£¥￥]", "${1}").str.replace(r" ?[%€]$", "").str.replace(r"^\+", "")
    ends = text.str.extract(_SUFFIX, 2).str.to_lowercase()
    factor = ends.replace_strict(_SUFFIXES, default=1.0, return_dtype=pl.Float64).to_numpy()
    text = text.str.replace(_SUFFIX, "${1}")
    return text.str.replace_all("[ '’]", "").zip_with(text.str.contains(_GROUPED), text), factor


def has_decimal_commas(column: pl.Series) -> bool:
    """Whether the numbers in a column of text have a decimal comma, or points between thousands, for certain."""
    if column.dtype != pl.String:
        return False
    text = column.drop_nulls().str.replace_all(_SPACES, " ").str.replace(r" ?[%€]$", "").str.strip_chars()
    text = text.filter(text.str.contains(_DIGITS))
    return bool(text.str.contains(_FORMS[","]).all() and not text.str.contains(_FORMS["."]).all())


def nearly_a_number(column: pl.Series) -> str | None:
    """A cell of a column of amounts that are not written as numbers, most of them; None of a column of words."""
    if column.dtype != pl.String:
        return None
    cells = column.drop_nulls().str.strip_chars()
    cells = cells.filter(~_is_missing(cells))
    amounts = cells.filter(cells.str.contains(_NEARLY) & ~cells.str.contains(_DATE))
    return str(amounts[0]) if len(cells) and len(amounts) > len(cells) / 2 else None
