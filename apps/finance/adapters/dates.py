"""Dates whose parts stand in another order than ISO 8601's, or are words, put into its order: year-month-day."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.errors import InvalidInputError

if TYPE_CHECKING:
    import polars

_MONTHS = ("jan", "feb", "mar", "apr", "may", "june?", "july?", "aug", "sept?", "oct", "nov", "dec")
_ENDINGS = ("uary", "ruary", "ch", "il", "", "", "", "ust", "ember", "ober", "ember", "ember")
_SLASHED = r"^(\d{1,2})[/-](\d{1,2})[/-](\d{4}|\d{2})(?:$|([ T,].*))"
_DOTTED = r"^(\d{1,2})\.(\d{1,2})\.(\d{2})(?:$|([ T,].*))"


def in_iso_order(text: polars.Series, place: str) -> polars.Series:
    """(N,) text with dates as 2024-01-31; what is no such date stays as it is.

    Reads 31/01/2024 and 01/31/2024 where the column leaves one order, 2024/1/31, 2024.01.31, 2024年1月31日,
    31-Jan-2024, Jan 31, 2024, 2024Q1 and 2024-01 (their first days). Refuses an order that cannot be told.
    """
    if bool(text.str.contains("[年月周星期一二三四五六日]").any()):
        text = text.str.replace(r"^(\d{4})年(\d{1,2})月", "${1}-${2}-").str.replace(r"(\d)日", "${1}")
        text = text.str.replace(r"-$", "").str.replace(r"[,，/ ]*(?:周|星期)?[一二三四五六日天]$", "")
    text = text.str.replace(r"^(\d{4})[/.](\d{1,2})[/.](\d{1,2})", "${1}-${2}-${3}")
    text = text.str.replace(r"^(\d{4})[/-](\d{1,2})$", "${1}-${2}-01")
    if bool(text.str.contains(r"^\d{4}[- ]?[Qq][1-4]$").any()):
        for quarter in range(1, 5):
            text = text.str.replace(rf"^(\d{{4}})[- ]?[Qq]{quarter}$", f"${{1}}-{3 * quarter - 2:02d}-01")
    if bool(text.str.contains(r"[A-Za-z]{3}").any()):
        text = _months(text.str.replace(r"(?i)^(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?,? +", ""))
    if bool(text.str.contains(_SLASHED).any()):
        text = _ordered(text, place, _SLASHED)
    if bool(text.str.contains(_DOTTED).any()):
        text = _ordered(text, place, _DOTTED)
    return text


def _months(text: polars.Series) -> polars.Series:
    text = text.str.replace(r"^(\d{1,2})[ /.-]?([A-Za-z]{3,9})\.?[ /.,-]?(\d{4})", "${3}-${2}-${1}")
    text = text.str.replace(r"^([A-Za-z]{3,9})\.? (\d{1,2})(?:st|nd|rd|th)?,? (\d{4})", "${3}-${1}-${2}")
    text = text.str.replace(r"^([A-Za-z]{3,9})\.?[ -](\d{4})$", "${2}-${1}-01")
    for number, (short, ending) in enumerate(zip(_MONTHS, _ENDINGS, strict=True), start=1):
        text = text.str.replace(rf"(?i)^(\d{{4}})-{short}(?:{ending})?-", f"${{1}}-{number:02d}-")
    return text


def _ordered(text: polars.Series, place: str, form: str) -> polars.Series:
    """Puts 31/01/2024, 01/31/2024, 1/31/24, 24/01/31 and 31.01.24 into ISO order, if one order is the only possible."""
    import polars as pl

    parts = text.str.extract_groups(form).struct.unnest()
    parts.columns = ["a", "b", "c", "rest"]
    known = parts.filter(pl.col("a").is_not_null())
    first, second, third = (known[name].cast(pl.Int32) for name in "abc")
    short = bool((known["c"].str.len_chars() == 2).any())
    possible = {
        # Between points nobody puts the month first.
        "cab": form == _SLASHED and bool((first <= 12).all() and (second <= 31).all()),
        "cba": bool((second <= 12).all() and (first <= 31).all()),
        "abc": short and bool((second <= 12).all() and (third <= 31).all() and (known["c"].str.len_chars() == 2).all()),
    }
    orders = [order for order, holds in possible.items() if holds]
    if set(orders) == {"cab", "cba"}:
        orders = _monthly(first, second) or orders
    if set(orders) == {"cba", "abc"}:
        orders = _varied(first, third) or orders
    if len(orders) != 1:
        fault = "is ambiguous" if orders else "puts the day first in some rows and the month first in others"
        raise InvalidInputError(
            f"{place}: {text.filter(parts['a'].is_not_null())[0]!r} {fault}; write dates as 2024-01-31"
        )
    year, month, day = (parts[name].cast(pl.Int32) for name in orders[0])
    # Two digits are years as POSIX has them: 69 to 99 of the last century, 00 to 68 of this one.
    century = pl.Series([1900, 2000]).gather((year < 69).cast(pl.UInt32).fill_null(0))
    year = year.zip_with(year >= 100, year + century.cast(pl.Int32))
    iso = pl.select(
        pl.format(
            "{}-{}-{}{}",
            year,
            month.cast(pl.String).str.zfill(2),
            day.cast(pl.String).str.zfill(2),
            parts["rest"].fill_null("").str.replace(r"^, *", " "),
        )
    ).to_series()
    return iso.zip_with(parts["a"].is_not_null(), text)


def _varied(first: polars.Series, third: polars.Series) -> list[str]:
    """The order of dates with two digits for the year, where one end has many days and the other few years."""
    days, years = first.n_unique(), third.n_unique()
    if days >= 10 and years <= days / 2:
        return ["cba"]
    if years >= 10 and days <= years / 2:
        return ["abc"]
    return []


def _monthly(first: polars.Series, second: polars.Series) -> list[str]:
    """The order of dates that are all the first of a month, where every month comes: no days run from 1 to 12 alone."""
    if len(first) >= 24 and first.n_unique() == 1 and first[0] == 1 and second.n_unique() == 12:
        return ["cba"]
    if len(first) >= 24 and second.n_unique() == 1 and second[0] == 1 and first.n_unique() == 12:
        return ["cab"]
    return []
