"""Numbers in text columns: decimal marks, thousands separators, currency signs, per cent, K and M, missing values."""

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
"""The form of a number by its decimal mark; the other mark may separate thousands, and hundreds as in India."""
_DIGITS = r"^[+-]?[\d.,]+([eE][+-]?\d+)?$"
_GROUPED = r"^[+-]?\d{1,3}([ '’]\d{3})+([.,]\d*)?$"
"""With spaces, including narrow ones, or apostrophes between thousands."""
_SPACES = "[\u00a0\u2009\u202f]"
_BLOOMBERG_MISSING = "#n/a "  # begins Bloomberg's #N/A N/A and its other reasons
_DATE = r"^\d{1,4}[./-]\d{1,2}[./-]\d{1,4}"
_AMOUNT = (
    r"^[(+\-\u2212]?(?:[A-Z]{3}|R\$)? ?[(+\-\u2212]?[$€£¥]? ?\d[\d.,'’ \u00a0\u202f]*\)?"
    r"(?: ?(?:[A-Z]{3}|bps?|Mrd|Mio|[$€£¥%]))?$"
)
"""An amount with a currency or unit, or in brackets."""
_IN_BRACKETS = r"^\(([$€£¥￥]?\d[\d.,'’ ]*)\)$"
"""A negative amount in accounting notation."""
MAX_VALUE = 1e100  # larger values are errors, and their squares and sums overflow


def read_column(column: pl.Series, lines: Rows, decimal: str | None, european: bool) -> tuple[Floats | None, str]:
    """The numbers in a column, NaN where missing, or None for a text column; and a description of its fault, or an
    empty text.

    ``decimal`` is the decimal mark of cells that can be read with either, such as 1,234 and 1.234. Without it, 1.234
    has a decimal point and 1,234 is a fault; in a ``european`` table, 1,234 has a decimal comma and 1.234 is a fault.
    """
    if column.dtype == pl.Float32:  # as it would be written: 100.13, not the nearest double, 100.12999725341797
        column = column.cast(pl.String).cast(pl.Float64)
    if column.dtype != pl.String and not column.dtype.is_numeric():
        return None, ""
    factor, is_wrong = np.ones(len(column)), np.zeros(len(column), bool)
    numbers, example_row = column.cast(pl.Float64, strict=False), None
    # Most columns need no more, which matters for many: each text operation is computed by another thread, for which a
    # busy machine has to be waited for.
    if column.dtype == pl.String and (european or decimal == "," or numbers.null_count() > column.null_count()):
        text = column.fill_null("").str.replace_all(_SPACES, " ").str.strip_chars()
        missing = _is_missing(text)
        text, factor = _strip_decoration(text)
        digits = text.str.contains(_DIGITS)
        violates = {mark: digits & ~text.str.contains(form) for mark, form in _FORMS.items()}
        marks = [mark for mark in _FORMS if not violates[mark].any()]
        has_mark = digits & text.str.contains(r"^[+-]?\d+[.,]\d")
        mark = (marks or [decimal or min(violates, key=lambda candidate: int(violates[candidate].sum()))])[0]
        mark = decimal if len(marks) == 2 and decimal else mark
        if len(marks) == 2 and decimal is None and has_mark.any():
            row = int(has_mark.arg_max() or 0)
            mark = "," if "," in text[row] else "."
            if (mark == ",") != european:
                readings = f"{text[row].replace(mark, '')} or {text[row].replace(',', '.')} (give the option decimal)"
                return None, f"holds {text[row]!r} in line {lines[row]}, which may be {readings}"
        matches = digits & ~violates[mark]
        example_row = (
            ((matches & has_mark) if (matches & has_mark).any() else matches).arg_max()
            if violates[mark].any() and matches.any()
            else None
        )
        text = text.str.replace_all({",": ".", ".": ","}[mark], "", literal=True).set(violates[mark], "odd")
        numbers = text.str.replace(",", ".", literal=True).cast(pl.Float64, strict=False)
        is_wrong = (numbers.is_null() & ~missing).to_numpy()
        if int(is_wrong.sum()) > 0.5 * int((~missing).sum()):
            return None, ""
    values = numbers.to_numpy() * factor  # NaN where missing
    is_wrong = is_wrong | (np.isfinite(values) & (np.abs(values) > MAX_VALUE))
    if is_wrong.any():
        row = int(np.argmax(is_wrong))
        form = (
            "a usable number"
            if example_row is None
            else f"a number like {column[example_row]!r} in line {lines[example_row]}"
        )
        return None, f"holds {column[row]!r} in line {lines[row]}, which is not {form}"
    return values, ""


def _is_missing(text: pl.Series) -> pl.Series:
    """(N,) which cells stand for a missing value."""
    lower = text.str.to_lowercase()
    return lower.is_in(_MISSING) | lower.str.starts_with(_BLOOMBERG_MISSING)


def _strip_decoration(text: pl.Series) -> tuple[pl.Series, Floats]:
    """(N,) the cells without brackets, currency signs, suffixes and digit-grouping spaces; and (N,) their factors."""
    text = text.str.replace(_IN_BRACKETS, "-${1}")
    text = text.str.replace(r"^([+-]?)[$€£¥￥]", "${1}").str.replace(r" ?[%€]$", "").str.replace(r"^\+", "")
    suffixes = text.str.extract(_SUFFIX, 2).str.to_lowercase()
    factor = suffixes.replace_strict(_SUFFIXES, default=1.0, return_dtype=pl.Float64).to_numpy()
    text = text.str.replace(_SUFFIX, "${1}")
    return text.str.replace_all("[ '’]", "").zip_with(text.str.contains(_GROUPED), text), factor


def has_decimal_commas(frame: pl.DataFrame) -> bool:
    """Whether the numbers in a text column certainly have a decimal comma, or points between thousands."""
    digits, text = _digits()
    return _any_column(frame, _all_match(text, digits, ",") & ~_all_match(text, digits, "."))


def decimal_mark(frame: pl.DataFrame) -> str | None:
    """The decimal mark of a table whose text columns have numbers with both marks, such as 10.003,77; None if none has,
    or if they differ. Whoever wrote them separates thousands in other columns too, where 1.234 alone is ambiguous."""
    digits, text = _digits()
    both = digits & text.str.contains(",.*\\.|\\..*,")
    marks = [mark for mark in _FORMS if _any_column(frame, both.any() & _all_match(text, both, mark))]
    return marks[0] if len(marks) == 1 else None


def _digits() -> tuple[pl.Expr, pl.Expr]:
    """For each column, which cells are numbers in digits, and the cells without spaces and signs."""
    text = pl.all().str.replace_all(_SPACES, " ").str.replace(r" ?[%€]$", "").str.strip_chars()
    return text.str.contains(_DIGITS), text


def _all_match(text: pl.Expr, cells: pl.Expr, mark: str) -> pl.Expr:
    """Whether all of ``cells`` have the form of numbers with this decimal mark."""
    return (~cells | text.str.contains(_FORMS[mark])).all()


def _any_column(frame: pl.DataFrame, condition: pl.Expr) -> bool:
    """Whether the condition holds for a text column in which some cell is not written as Python writes numbers."""
    texts = [
        column
        for column in frame.get_columns()
        if column.dtype == pl.String and column.cast(pl.Float64, strict=False).null_count() > column.null_count()
    ]
    return any(any(row) for row in pl.DataFrame(texts).select(condition).rows())


def find_formatted_amount(column: pl.Series) -> str | None:
    """A cell of a text column most of whose cells are amounts that are not written as numbers; None for a column of
    words."""
    if column.dtype != pl.String:
        return None
    cells = column.drop_nulls().str.strip_chars()
    cells = cells.filter(~_is_missing(cells))
    amounts = cells.filter(cells.str.contains(_AMOUNT) & ~cells.str.contains(_DATE))
    return str(amounts[0]) if len(cells) and len(amounts) > len(cells) / 2 else None
