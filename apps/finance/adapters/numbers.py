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
_NEARLY = (
    r"^[(+\-\u2212]?(?:[A-Z]{3}|R\$)? ?[(+\-\u2212]?[$€£¥]? ?\d[\d.,'’ \u00a0\u202f]*\)?"
    r"(?: ?(?:[A-Z]{3}|bps?|Mrd|Mio|[$€£¥%]))?$"
)
"""An amount with its currency or unit, in brackets, or with spaces or apostrophes between thousands."""
_LARGEST = 1e100  # larger ones nobody measured, and their squares and sums are no numbers any more


def read_column(column: pl.Series, lines: Rows, decimal: str | None, semicolons: bool) -> tuple[Floats | None, str]:
    """The numbers in a column, NaN where missing; None for a column of text; and what is wrong with it, if anything.

    ``decimal`` is the decimal mark of cells that may be read with either: 1,234 and 1.234. Without it 1.234 has a
    point, unless ``semicolons`` part the cells; 1,234 has a decimal comma between semicolons, and is a fault elsewhere.
    """
    if column.dtype == pl.Float32:  # as it would be written: 100.13, not the 100.12999725341797 that is next to it
        column = column.cast(pl.String).cast(pl.Float64)
    if column.dtype != pl.String and not column.dtype.is_numeric():
        return None, ""
    factor, missing = np.ones(len(column)), column.is_null()
    numbers = column.cast(pl.Float64, strict=False)
    if column.dtype == pl.String and (semicolons or decimal == "," or numbers.null_count() > missing.sum()):
        text = column.fill_null("").str.replace_all("[\u00a0\u202f]", " ").str.strip_chars()
        missing = text.str.to_lowercase().is_in(_MISSING)
        text = text.str.replace(r"^([+-]?)[$€£¥￥]", "${1}").str.replace(r" ?[%€]$", "").str.replace(r"^\+", "")
        ends = text.str.extract(_SUFFIX, 2).str.to_lowercase()
        factor = ends.replace_strict(_SUFFIXES, default=1.0, return_dtype=pl.Float64).to_numpy()
        text = text.str.replace(_SUFFIX, "${1}")
        cells = text.filter(text.str.contains(r"^[+-]?[\d.,]+([eE][+-]?\d+)?$"))
        marks = [mark for mark, form in _FORMS.items() if bool(cells.str.contains(form).all())]
        marked = text.str.contains(r"^[+-]?\d+[.,]\d")
        mark = decimal if len(marks) == 2 and decimal else (marks or ["."])[0]
        if len(marks) == 2 and decimal is None and marked.any():
            row = int(marked.arg_max() or 0)
            mark = "," if "," in text[row] else "."
            if (mark == ",") != semicolons:
                either = f"{text[row].replace(mark, '')} or {text[row].replace(',', '.')} (give the option decimal)"
                return None, f"holds {text[row]!r} in line {lines[row]}, which can be {either}"
        text = text.str.replace_all({",": ".", ".": ","}[mark] if marks else " ", "", literal=True)
        numbers = text.str.replace(",", ".", literal=True).cast(pl.Float64, strict=False)
    bad = numbers.is_null() & ~missing
    if int(bad.sum()) > 0.5 * int((~missing).sum()):
        return None, ""
    values = numbers.fill_null(np.nan).to_numpy() * factor
    wrong = bad.to_numpy() | (np.isfinite(values) & (np.abs(values) > _LARGEST))
    if wrong.any():
        row = int(np.argmax(wrong))
        return None, f"holds {column[row]!r} in line {lines[row]}, which is no number that can be reckoned with"
    return values, ""


def nearly_a_number(column: pl.Series) -> str | None:
    """A cell of a column of amounts that are not written as numbers, most of them; None of a column of words."""
    if column.dtype != pl.String:
        return None
    cells = column.drop_nulls().str.strip_chars()
    cells = cells.filter(~cells.str.to_lowercase().is_in(_MISSING))
    amounts = cells.filter(cells.str.contains(_NEARLY))
    return str(amounts[0]) if len(cells) and len(amounts) > len(cells) / 2 else None
