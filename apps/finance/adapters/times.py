"""Times as people write them, to UTC nanoseconds. Dates are read by ``pandas.to_datetime``; numbers by their size.

What pandas cannot know is settled before: which of 01/02/2024 is the month, and what a bare number counts.
"""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from apps.finance.adapters.options import NOTHING_SAID, TableOptions
from apps.finance.types import DAY_NS, SECOND_NS, Times
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    import pandas
    import polars

Lines = NDArray[np.int64]
_EARLIEST, _LATEST = -2_208_988_800, 7_258_118_400  # 1900 and 2200, in s
_NUMBER = re.compile(r"^[+-]?\d+([.]\d+)?([eE][+-]?\d+)?$")
_DATE_LIKE = re.compile(r"date|datum|fecha|data|日期|day", re.IGNORECASE)
_CALENDAR = {
    4: ("0101000000", "years"),
    6: ("01000000", "years and months"),
    8: ("000000", "dates"),
    10: ("0000", "dates and hours"),
    12: ("00", "dates and minutes"),
    14: ("", "dates and seconds"),
    17: ("", "dates and milliseconds"),
}
"""Calendar numbers by their digits: what completes them to the second, and what they are."""
_EXAMPLE = "20240131093000000"
_SIZES = ((1e8, "s"), (1e11, "ms"), (1e14, "us"), (1e17, "ns"))
"""The least number of each unit since 1970: from March 1973 on, no two units and no date overlap."""
_UNIT_NS = {"s": SECOND_NS, "ms": 10**6, "us": 10**3, "ns": 1, "days": DAY_NS}
_EXCEL = (29_221, 73_050)
"""Excel's days from 1980 to 2099: below, days since 1970 are as likely."""
_EXCEL_EPOCH_NS = -25_569 * DAY_NS
_FILL = "fill it in or delete the row"
_MOST_WORDED = 200_000
_SLASHED = r"^(\d{1,2})([/.-])(\d{1,2})[/.-](\d{4}|\d{2})(?:$|[T,]? *(.*)$)"


def parse_times(column: polars.Series, place: str, lines: Lines | None = None) -> Times:
    """(N,) UTC ns of a column of times; see ``read_times``."""
    return read_times(column, place, lines)[0]


def read_times(
    column: polars.Series, place: str, lines: Lines | None = None, options: TableOptions = NOTHING_SAID
) -> tuple[Times, str]:
    """(N,) UTC ns of a column of text, numbers, dates or datetimes, and what there is to say of the reading.

    Times without a zone are in ``options.zone``, or UTC. ``place`` names file and column in refusals, ``lines`` (N,)
    the lines of the rows (by default the header is line 1). Refuses times that cannot be read, dates whose day and
    month cannot be told apart, numbers that may be several things, and times before 1900 or after 2200.
    """
    import polars as pl

    lines = np.arange(2, len(column) + 2) if lines is None else lines
    kind = column.dtype
    if column.null_count():
        raise InvalidInputError(f"{place} has no time in line {lines[int(column.is_null().arg_max() or 0)]}; {_FILL}")
    if kind == pl.Date or isinstance(kind, pl.Datetime):
        zoned = isinstance(kind, pl.Datetime) and kind.time_zone is not None
        dated = column.cast(pl.Datetime("us")) if kind == pl.Date else column
        _refuse_far(dated.dt.epoch("s").to_numpy(), column, place, lines)
        times = dated.dt.cast_time_unit("ns").to_physical().to_numpy().astype(np.int64)
        return times if zoned else _in_zone(times, options.zone), ""
    if kind.is_numeric():
        wide = column if kind.is_integer() else column.cast(pl.Float64)
        return _read_numbers(wide.to_numpy(), column, place, lines, options)
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
        return _read_text(text, place, lines, options), ""
    numbers = text.cast(pl.Float64, strict=False)
    if numbers.null_count():
        row = int(numbers.is_null().arg_max() or 0)
        raise InvalidInputError(
            f"{place}, line {lines[row]}: {text[row]!r} is not a number, as {first!r} in line {lines[0]} is"
        )
    whole = text.cast(pl.Int64, strict=False)
    return _read_numbers((numbers if whole.null_count() else whole).to_numpy(), text, place, lines, options)


def _read_text(text: polars.Series, place: str, lines: Lines, options: TableOptions) -> Times:
    import pandas as pd

    unified = text.str.replace(r"^(\d{4})年(\d{1,2})月", "${1}-${2}-").str.replace(r"(\d)日", "${1}")
    unified = unified.str.replace(r"-$", "").str.replace(r"[,，/ ]*(?:周|星期)?[一二三四五六日天]$", "")
    unified = unified.str.replace(r"\[[A-Za-z]+/[A-Za-z_/]+\]$", "").str.replace(r"(:\d\d),(\d+)", "${1}.${2}")
    unified = unified.str.replace(r" ?(UTC|GMT|z)$", "Z").str.replace(r"^(\d{4})[- ]?[Qq]([1-4])$", "${1}Q${2}")
    unified = _in_iso_order(unified.str.replace(r"(\d)[_ ]+(\d)", "${1} ${2}"), place, options.unit)
    cells = pd.Series(unified.to_list(), dtype=object)
    found = pd.to_datetime(cells, format="ISO8601", utc=True, errors="coerce")
    # Words are read only beside four digits of a year: "Jan-24" may be a day or a year, and "24" alone anything.
    worded = found.isna() & cells.str.contains(r"\d{4}") & cells.str.contains(r"[A-Za-z]{3}|[AaPp]\.?[Mm]|Q[1-4]")
    if worded.any():
        found = found.where(~worded, cells[worded].map(_worded_times(cells[worded])))
    if found.isna().any():
        row = int(np.argmax(found.isna().to_numpy()))
        raise InvalidInputError(
            f"{place}, line {lines[row]}: {text[row]!r} is not a time; write it as 2024-01-31 09:30:00 (UTC), or with "
            "its zone"
        )
    moments = pd.to_datetime(found, utc=True).dt.tz_localize(None)
    seconds = moments.to_numpy().astype("datetime64[s]").astype(np.int64)
    _refuse_far(seconds, text, place, lines)
    times: Times = moments.to_numpy().astype("datetime64[ns]").astype(np.int64)
    if options.zone is None:
        return times
    bare = ~unified.str.contains(r"(?:Z|:\d\d(?:\.\d+)? ?[+-]\d\d:?(?:\d\d)?)$").to_numpy()
    return np.where(bare, _in_zone(times, options.zone), times)


def _worded_times(cells: pandas.Series) -> dict[str, pandas.Timestamp]:
    """Times with words in them (names of months, AM and PM), by their text; what is none is left out."""
    import pandas as pd

    distinct = pd.Series(cells.unique(), dtype=object)
    if len(distinct) > _MOST_WORDED:
        raise InvalidInputError(
            f"more than {_MOST_WORDED} times have words in them, such as {distinct[0]!r}; write times as "
            "2024-01-31 09:30:00"
        )
    with warnings.catch_warnings():
        # A time of day without a zone that dateutil knows is read as it stands.
        warnings.simplefilter("ignore")
        read = pd.to_datetime(distinct, format="mixed", utc=True, errors="coerce")
    return {text: time for text, time in zip(distinct, read, strict=True) if not pd.isna(time)}


def _in_zone(times: Times, zone: str | None) -> Times:
    """Times of a wall clock in ``zone`` as UTC; the second of two equal hours in autumn is the later one, if any."""
    if zone is None:
        return times
    import pandas as pd

    clock = pd.DatetimeIndex(times.astype("datetime64[ns]"))
    try:
        moments = clock.tz_localize(zone, ambiguous="infer", nonexistent="shift_forward")
    except ValueError:
        moments = clock.tz_localize(zone, ambiguous=np.zeros(len(clock), bool), nonexistent="shift_forward")
    utc: Times = moments.tz_convert("UTC").tz_localize(None).to_numpy().astype("datetime64[ns]").astype(np.int64)
    return utc


def _in_iso_order(text: polars.Series, place: str, unit: str | None) -> polars.Series:
    """(N,) text with 31/01/2024, 01/31/2024, 31.01.24 and the like as 2024-01-31; what is no such date stays.

    Refuses an order of day and month that the column leaves open, unless ``unit`` names it.
    """
    import polars as pl

    parts = text.str.extract_groups(_SLASHED).struct.unnest()
    parts.columns = ["a", "mark", "b", "c", "rest"]
    known = parts.filter(pl.col("a").is_not_null())
    if not known.height:
        return text
    first, second, third = (known[name].cast(pl.Int32) for name in "abc")
    points = bool((known["mark"] == ".").all())
    possible = {
        # Between points nobody puts the month or the year first.
        "cab": not points and bool((first <= 12).all() and (second <= 31).all()),
        "cba": bool((second <= 12).all() and (first <= 31).all()),
        "abc": not points
        and bool((known["c"].str.len_chars() == 2).all() and (second <= 12).all() and (third <= 31).all()),
    }
    orders = [order for order, holds in possible.items() if holds]
    named = {"day-first": "cba", "month-first": "cab"}.get(unit or "")
    if named in orders:
        orders = [named]
    if len(orders) != 1:
        fault = "is ambiguous" if orders else "puts the day first in some rows and the month first in others"
        raise InvalidInputError(
            f"{place}: {text.filter(parts['a'].is_not_null())[0]!r} {fault}; write dates as 2024-01-31, or give the "
            "option unit=day-first or unit=month-first"
        )
    year, month, day = (parts[name].cast(pl.Int32) for name in orders[0])
    # Two digits are years as POSIX has them: 69 to 99 of the last century, 00 to 68 of this one.
    century = pl.select(pl.when(year >= 100).then(0).when(year < 69).then(2000).otherwise(1900)).to_series()
    two = [one.cast(pl.String).str.zfill(2) for one in (month, day)]
    clock = " " + parts["rest"].fill_null("")
    iso = ((year + century).cast(pl.String) + "-" + two[0] + "-" + two[1] + clock).str.strip_chars()
    return iso.zip_with(parts["a"].is_not_null(), text)


def _read_numbers(
    numbers: np.ndarray, written: polars.Series, place: str, lines: Lines, options: TableOptions
) -> tuple[Times, str]:
    """Times written as numbers: in ``options.unit``, or by their size alone, if all of a column agree.

    Whole numbers of 4, 6, 8, 10, 12, 14 or 17 digits that are all calendar dates between 1900 and 2200 are those
    (2024, 202401, 20240131, ...). Numbers from 1e8 are seconds since 1970, from 1e11 ms, from 1e14 us, from 1e17 ns.
    29221 to 73050 are Excel's days in a column that is called a date. Everything else is refused: it may be a count,
    seconds of a day, or days since another day.
    """
    if not np.isfinite(numbers).all():
        raise InvalidInputError(f"{place} has no time in line {lines[int(np.argmin(np.isfinite(numbers)))]}; {_FILL}")
    unit, least, largest = options.unit, float(numbers.min()), float(numbers.max())
    if unit in _UNIT_NS:
        _refuse_far(numbers * (_UNIT_NS[unit] / SECOND_NS), written, place, lines)
        return _in_zone(_scaled(numbers, _UNIT_NS[unit]), options.zone if unit == "days" else None), ""
    if unit != "excel" and (numbers == np.floor(numbers)).all() and largest < 2**63:
        calendar = _calendar(numbers.astype(np.int64), place, lines)
        if calendar is not None:
            return _in_zone(calendar[0], options.zone), calendar[1]
    for size, name in _SIZES:
        if unit is None and size <= least and largest <= _LATEST * (SECOND_NS // _UNIT_NS[name]):
            return _scaled(numbers, _UNIT_NS[name]), ""
    if unit == "excel" or (_EXCEL[0] <= least and largest <= _EXCEL[1] and _DATE_LIKE.search(written.name)):
        # To the millisecond, which is what Excel computes with.
        milliseconds = np.round(numbers.astype(np.float64) * 86_400_000).astype(np.int64)
        # Six decimals of a day are 86 ms: what is meant is the second, if all are that near to one.
        second = np.round(milliseconds / 1000).astype(np.int64) * 1000
        milliseconds = second if (np.abs(milliseconds - second) <= 50).all() else milliseconds
        excel: Times = milliseconds * 10**6 + _EXCEL_EPOCH_NS
        _refuse_far(excel // SECOND_NS, written, place, lines)
        said = f"numbers such as {written[0]} were read as Excel's days: {_day(excel[0])}"
        return _in_zone(excel, options.zone), said
    row = int(np.argmax(np.abs(numbers - np.median(numbers))))
    raise InvalidInputError(
        f"{place}, line {lines[row]}: {written[row]} may be seconds, days or a count, and is no time between 1973 and "
        "2200 for certain; write times as 2024-01-31 09:30:00, as 20240131, or as seconds since 1970, or give the "
        "option unit (Excel's days are read from 1980 on, in a column called 'date')"
    )


def _scaled(numbers: np.ndarray, unit_ns: int) -> Times:
    full: Times = np.floor(numbers).astype(np.int64) * unit_ns
    if not np.issubdtype(numbers.dtype, np.integer):
        full += np.round((numbers - np.floor(numbers)) * unit_ns).astype(np.int64)
    return full


def _calendar(numbers: NDArray[np.int64], place: str, lines: Lines) -> tuple[Times, str] | None:
    import pandas as pd

    digits = len(str(int(numbers[0])))
    scale = 10 ** (digits - 4) if digits >= 4 else 1
    if digits not in _CALENDAR or numbers.min() < 1900 * scale or numbers.max() >= 2201 * scale:
        return None
    rest, what = _CALENDAR[digits]
    text = pd.Series(numbers).astype(str) + rest
    parsed = pd.to_datetime(text, format="%Y%m%d%H%M%S" + ("%f" if digits == 17 else ""), errors="coerce")
    if parsed.isna().any():
        if digits in (10, 12):  # these may be seconds or milliseconds since 1970 as well
            return None
        row = int(np.argmax(parsed.isna().to_numpy()))
        raise InvalidInputError(
            f"{place}, line {lines[row]}: {numbers[row]} is no date such as {_EXAMPLE[:digits]}; correct it"
        )
    times = parsed.to_numpy().astype("datetime64[ns]").astype(np.int64)
    return times, f"numbers such as {numbers[0]} were read as {what}: {_day(times[0])}" if digits != 8 else ""


def _day(time_ns: int) -> str:
    return str(np.datetime64(int(time_ns), "ns").astype("datetime64[s]")).replace("T", " ").removesuffix(" 00:00:00")


def _refuse_far(seconds: np.ndarray, written: polars.Series, place: str, lines: Lines) -> None:
    """Refuses a time before 1900 or after 2200, ``seconds`` (N,) since 1970, with its line and as it is written."""
    far = (seconds < _EARLIEST) | (seconds > _LATEST)
    if far.any():
        row = int(np.argmax(far))
        raise InvalidInputError(
            f"{place}, line {lines[row]}: {str(written[row])!r} is not between 1900 and 2200; "
            "correct the date, or delete the row"
        )
