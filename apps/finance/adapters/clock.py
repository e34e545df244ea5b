"""Times as people write them, to UTC nanoseconds: ISO 8601, dates in many hands, epochs, calendar numbers.

Numbers are read by their size, where one reading alone is possible (``read_numbers``); everything else is refused.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from apps.finance.adapters.dates import in_iso_order
from apps.finance.types import DAY_NS, SECOND_NS, Times
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    import polars

Lines = NDArray[np.int64]

_ZONED = ("%Y-%m-%dT%H:%M:%S%.f%:z", "%Y-%m-%dT%H:%M:%S%.f%z", "%Y-%m-%dT%H:%M%:z")
_PLAIN = (
    *("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y%m%dT%H%M%S", "%Y%m%dT%H:%M:%S%.f", "%Y%m%dT%H:%M", "%Y%m%dT%H%M"),
    *("%d.%m.%YT%H:%M:%S%.f", "%d.%m.%YT%H:%M", "%Y-%m-%dT%I:%M:%S%.fT%p", "%Y-%m-%dT%I:%MT%p"),
)
_DATES = ("%Y-%m-%d", "%Y%m%d", "%d.%m.%Y")
_EARLIEST, _LATEST = -2_208_988_800, 7_258_118_400  # 1900 and 2200, in s
_NUMBER = re.compile(r"^[+-]?\d+([.]\d+)?([eE][+-]?\d+)?$")

_CALENDAR = {
    4: ("0101000000", "years", "2024"),
    6: ("01000000", "years and months", "202401"),
    8: ("000000", "dates", "20240131"),
    10: ("0000", "dates and hours", "2024013109"),
    12: ("00", "dates and minutes", "202401310930"),
    14: ("", "dates and seconds", "20240131093000"),
    17: ("", "dates and milliseconds", "20240131093000000"),
}
"""Calendar numbers by their digits: what completes them to the second, what they are, and how one looks."""
_UNITS = ((1e8, SECOND_NS), (1e11, 10**6), (1e14, 10**3), (1e17, 1))
"""The least number of each unit since 1970, and its ns: from March 1973 on, no two units and no date overlap."""
_EXCEL = (29_221, 73_050)
"""Excel's days from 1980 to 2099: below, days since 1970 are as likely."""
_EXCEL_EPOCH_NS = -25_569 * DAY_NS
_DATE_LIKE = re.compile(r"date|datum|fecha|data|日期|day", re.IGNORECASE)


def parse_times(column: polars.Series, place: str, lines: Lines | None = None) -> Times:
    """(N,) UTC ns of a column of times; see ``read_times``."""
    return read_times(column, place, lines)[0]


def read_times(column: polars.Series, place: str, lines: Lines | None = None) -> tuple[Times, str]:
    """(N,) UTC ns of a column of text, numbers, dates or datetimes, and what there is to say of the reading.

    Times without a zone are UTC. ``place`` names file and column in refusals, ``lines`` (N,) the lines of the rows (by
    default the header is line 1). Refuses times that cannot be read, dates whose day and month cannot be told apart,
    and numbers that may be several things.
    """
    import polars as pl

    lines = np.arange(2, len(column) + 2) if lines is None else lines
    kind = column.dtype
    if isinstance(kind, (pl.Categorical, pl.Enum)):
        column, kind = column.cast(pl.String), pl.String()
    if column.null_count():
        raise InvalidInputError(f"{place} has no time in line {lines[int(column.is_null().arg_max() or 0)]}; {_FILL}")
    if kind == pl.Date or isinstance(kind, pl.Datetime):
        dated = column.cast(pl.Datetime("us")) if kind == pl.Date else column
        _refuse_far(dated, column, place, lines)
        return _nanoseconds(dated), ""
    if kind.is_numeric():
        wide = column if kind.is_integer() else column.cast(pl.Float64)
        return read_numbers(wide.to_numpy(), column, place, lines)
    if kind != pl.String:
        raise InvalidInputError(
            f"{place} holds {kind}, which is not a time; use ISO 8601 text, a date or seconds since 1970"
        )
    text = column.str.strip_chars().str.strip_chars("\"'")
    if bool(text.str.contains(r"^\d{5,},\d+$").any()) and bool(text.str.contains(r"^\d{5,}(,\d+)?$").all()):
        text = text.str.replace(",", ".", literal=True)
    first = str(text[0])
    # Eight digits may be mixed with dates in other hands.
    if not _NUMBER.match(first) or (len(first) == 8 and first.isdigit() and first[:2] in ("19", "20")):
        return _parse_text(text, place, lines), ""
    numbers = text.cast(pl.Float64, strict=False)
    _refuse_first(numbers.is_null(), text, place, lines, f"a number, as {first!r} in line {lines[0]} is")
    whole = text.cast(pl.Int64, strict=False)
    return read_numbers((numbers if whole.null_count() else whole).to_numpy(), text, place, lines)


_FILL = "fill it in or delete the row"


def read_numbers(numbers: np.ndarray, written: polars.Series, place: str, lines: Lines) -> tuple[Times, str]:
    """Times written as numbers, by their size alone, if all of a column agree.

    Whole numbers of 4, 6, 8, 10, 12, 14 or 17 digits that are all calendar dates between 1900 and 2200 are those
    (2024, 202401, 20240131, ...). Numbers from 1e8 are seconds since 1970, from 1e11 ms, from 1e14 us, from 1e17 ns.
    29221 to 73050 are Excel's days in a column that is called a date. Everything else is refused: it may be a count,
    seconds of a day, or days since another day.
    """
    if not np.isfinite(numbers).all():
        raise InvalidInputError(f"{place} has no time in line {lines[int(np.argmin(np.isfinite(numbers)))]}; {_FILL}")
    whole = bool((numbers == np.floor(numbers)).all()) and float(np.abs(numbers).max()) < 2**63
    if whole:
        calendar = _calendar(numbers.astype(np.int64), place, lines)
        if calendar is not None:
            return calendar
    least, largest = float(numbers.min()), float(numbers.max())
    for first, unit_ns in _UNITS:
        if first <= least and largest <= _LATEST * (SECOND_NS // unit_ns):
            full: Times = np.floor(numbers).astype(np.int64) * unit_ns
            if not np.issubdtype(numbers.dtype, np.integer):
                full += np.round((numbers - np.floor(numbers)) * unit_ns).astype(np.int64)
            return full, ""
    if _EXCEL[0] <= least and largest <= _EXCEL[1] and _DATE_LIKE.search(written.name):
        # To the millisecond, which is what Excel computes with.
        milliseconds = np.round(numbers.astype(np.float64) * 86_400_000).astype(np.int64)
        # Six decimals of a day are 86 ms: what is meant is the second, if all are that near to one.
        second = np.round(milliseconds / 1000).astype(np.int64) * 1000
        milliseconds = second if (np.abs(milliseconds - second) <= 50).all() else milliseconds
        excel: Times = milliseconds * 10**6 + _EXCEL_EPOCH_NS
        return excel, f"numbers such as {written[0]} were read as Excel's days: {_day(excel[0])}"
    row = int(np.argmax(np.abs(numbers - np.median(numbers))))
    raise InvalidInputError(
        f"{place}, line {lines[row]}: {written[row]} may be seconds, days or a count, and is no time between 1973 and "
        "2200 for certain; write times as 2024-01-31 09:30:00, as 20240131, or as seconds since 1970 "
        "(Excel's days are read from 1980 on, in a column called 'date')"
    )


def _calendar(numbers: NDArray[np.int64], place: str, lines: Lines) -> tuple[Times, str] | None:
    import polars as pl

    digits = len(str(int(numbers[0])))
    if digits not in _CALENDAR or numbers.min() <= 0:
        return None
    scale = 10 ** (digits - 4)
    if numbers.min() < 1900 * scale or numbers.max() >= 2201 * scale:
        return None
    rest, what, example = _CALENDAR[digits]
    text = pl.Series("", numbers).cast(pl.String) + rest
    form = "%Y%m%d%H%M%S" + ("%3f" if digits == 17 else "")
    parsed = text.str.to_datetime(form, strict=False, time_unit="us")
    if parsed.null_count():
        if digits in (10, 12):  # these may be seconds or milliseconds since 1970 as well
            return None
        row = int(parsed.is_null().arg_max() or 0)
        raise InvalidInputError(f"{place}, line {lines[row]}: {numbers[row]} is no date such as {example}; correct it")
    times = _nanoseconds(parsed)
    return times, f"numbers such as {numbers[0]} were read as {what}: {_day(times[0])}" if digits != 8 else ""


def _day(time_ns: int) -> str:
    return str(np.datetime64(int(time_ns), "ns").astype("datetime64[s]")).replace("T", " ").removesuffix(" 00:00:00")


def _parse_text(text: polars.Series, place: str, lines: Lines) -> Times:
    import polars as pl

    unified = in_iso_order(text, place)
    unified = unified.str.replace(r"\[[A-Za-z]+/[A-Za-z_/]+\]$", "").str.replace(r":(\d\d),(\d+)", ":${1}.${2}")
    unified = unified.str.replace(r"(\d)(?: +|_)(\d)", "${1}T${2}").str.replace(
        r"(?i)(:\d\d(?:\.\d+)?) ?([ap])\.?m\.?$", "${1}T${2}M"
    )
    unified = unified.str.replace(r" ?(UTC|GMT|Z|z)$", "+00:00").str.replace(
        r"(:\d\d(?:\.\d+)?) ?([+-]\d\d)$", "${1}${2}:00"
    )
    unified = unified.str.replace(r"(:\d\d(?:\.\d+)?) ([+-]\d\d:?\d\d)$", "${1}${2}")
    best: polars.Series | None = None
    for formats, zoned in ((_ZONED, True), (_PLAIN, False), (_DATES, False)):
        for form in formats:
            try:
                # Nanoseconds reach from 1677 to 2262 and wrap around silently, so the range is read in microseconds.
                parsed = _read_as(unified, form, formats is _DATES, "us")
                if parsed.null_count() < len(parsed):
                    _refuse_far(parsed, text, place, lines)
                    parsed = _read_as(unified, form, formats is _DATES, "ns")
            except pl.exceptions.PolarsError:
                continue
            if zoned and parsed.dtype.time_zone:  # type: ignore[attr-defined]
                parsed = parsed.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
            parsed = parsed.dt.cast_time_unit("ns")
            best = parsed if best is None else best.zip_with(best.is_not_null(), parsed)
            if not best.null_count():
                return _nanoseconds(best)
    assert best is not None
    _refuse_first(best.is_null(), text, place, lines, "a time; write it as 2024-01-31 09:30:00 (UTC), or with its zone")
    raise AssertionError("unreachable")


def _read_as(text: polars.Series, form: str, plain_date: bool, unit: Literal["us", "ns"]) -> polars.Series:
    import polars as pl

    if plain_date:
        return text.str.to_date(form, strict=False).cast(pl.Datetime(unit))
    return text.str.to_datetime(form, strict=False, time_unit=unit)


def _nanoseconds(dated: polars.Series) -> Times:
    return dated.dt.cast_time_unit("ns").to_physical().to_numpy().astype(np.int64)


def _refuse_far(dated: polars.Series, written: polars.Series, place: str, lines: Lines) -> None:
    """Refuses a time before 1900 or after 2200, with its line and as it is written; no time at all is not far."""
    seconds = dated.dt.epoch("s")
    far = ((seconds < _EARLIEST) | (seconds > _LATEST)).fill_null(False)
    if far.any():
        row = int(far.arg_max() or 0)
        raise InvalidInputError(
            f"{place}, line {lines[row]}: {str(written[row])!r} is not between 1900 and 2200; "
            "correct the date, or delete the row"
        )


def _refuse_first(bad: polars.Series, text: polars.Series, place: str, lines: Lines, wanted: str) -> None:
    if bad.any():
        row = int(bad.arg_max() or 0)
        raise InvalidInputError(f"{place}, line {lines[row]}: {text[row]!r} is not {wanted}")
