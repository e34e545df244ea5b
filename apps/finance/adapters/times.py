"""Times as exporters write them, to UTC nanoseconds. Dates are read by ``pandas.to_datetime``; numbers by their size.

What pandas cannot know is settled before: which of 01/02/2024 is the month, and what a bare number counts.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from apps.finance.adapters.columns import plain
from apps.finance.adapters.options import NOTHING_SAID, TableOptions
from apps.finance.types import DAY_NS, SECOND_NS, Times
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    import polars

Lines = NDArray[np.int64]
_EARLIEST, _LATEST = -2_208_988_800, 7_258_118_400  # 1900 and 2200, in s
_CALENDAR = {4: "%Y", 6: "%Y%m", 8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
"""Calendar numbers by their digits."""
_UNIT_NS = {"s": SECOND_NS, "ms": 10**6, "us": 10**3, "ns": 1, "days": DAY_NS}
_SIZES = ((1e8, "s"), (1e11, "ms"), (1e14, "us"), (1e17, "ns"))
"""The least number of each unit since 1970: from March 1973 on, no two units overlap."""
_EXCEL_EPOCH_NS = -25_569 * DAY_NS
_MOST_WORDED = 200_000
_SLASHED = r"^(\d{1,2})([/.-])(\d{1,2})[/.-](\d{4})(?:$|[T,]? *(.*)$)"
_PAIRS = (("date", "time"), ("日期", "时间"), ("trade date", "trade time"), ("交易日期", "交易时间"))


def join_parts(frame: polars.DataFrame) -> polars.DataFrame:
    """A table whose date and time of day are columns of their own, with them made one; any other as it is."""
    import polars as pl

    labels = {plain(label): label for label in reversed(frame.columns)}
    for day, clock in _PAIRS:
        if day not in labels or clock not in labels:
            continue
        date, time = frame[labels[day]], frame[labels[clock]].cast(pl.String, strict=False).str.strip_chars()
        if isinstance(date.dtype, pl.Datetime) or not bool(time.str.contains(r"^(\d{1,2}:\d\d|\d{6}$)").all()):
            continue
        time = time.str.replace(r"^(\d\d)(\d\d)(\d\d)$", "${1}:${2}:${3}")
        joined = date.cast(pl.String).str.strip_chars() + " " + time
        return frame.drop(labels[day], labels[clock]).insert_column(0, joined.alias("date time"))
    return frame


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
        row = int(column.is_null().arg_max() or 0)
        raise InvalidInputError(f"{place} has no time in line {lines[row]}; fill it in or delete the row")
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
    written = text.str.replace(",", ".", literal=True) if options.decimal == "," else text
    whole = written.cast(pl.Int64, strict=False)
    numbers = whole if not whole.null_count() else written.cast(pl.Float64, strict=False)
    if not numbers.null_count():
        return _read_numbers(numbers.to_numpy(), text, place, lines, options)
    return _read_text(text, place, lines, options), ""


def _read_text(text: polars.Series, place: str, lines: Lines, options: TableOptions) -> Times:
    import pandas as pd

    unified = text.str.replace(r"^(\d{4})年(\d{1,2})月(\d{1,2})日", "${1}-${2}-${3}")
    unified = _in_iso_order(unified.str.replace(r" ?(UTC|GMT)$", "Z"), place, options.unit)
    cells = pd.Series(unified.to_list(), dtype=object)
    found = pd.to_datetime(cells, format="ISO8601", utc=True, errors="coerce")
    # Words are read only beside four digits of a year: "Jan-24" may be a day or a year, and "24" alone anything.
    worded = found.isna() & cells.str.contains(r"\d{4}") & cells.str.contains(r"[A-Za-z]{3}|[AaPp][Mm]|\dQ[1-4]")
    if worded.any():
        distinct = pd.Series(cells[worded].unique(), dtype=object)
        if len(distinct) > _MOST_WORDED:
            raise InvalidInputError(
                f"{place} has more than {_MOST_WORDED} times with words in them, such as {distinct[0]!r}; write times "
                "as 2024-01-31 09:30:00"
            )
        with warnings.catch_warnings():
            # A time of day without a zone that dateutil knows is read as it stands.
            warnings.simplefilter("ignore")
            read = pd.to_datetime(distinct, format="mixed", utc=True, errors="coerce")
        found = found.where(~worded, cells.map(dict(zip(distinct, read, strict=True))))
    if found.isna().any():
        row = int(np.argmax(found.isna().to_numpy()))
        raise InvalidInputError(
            f"{place}, line {lines[row]}: {text[row]!r} is not a time; write it as 2024-01-31 09:30:00 (UTC), or with "
            "its zone"
        )
    moments = pd.to_datetime(found, utc=True).dt.tz_localize(None)
    _refuse_far(moments.to_numpy().astype("datetime64[s]").astype(np.int64), text, place, lines)
    times: Times = moments.to_numpy().astype("datetime64[ns]").astype(np.int64)
    if options.zone is None:
        return times
    bare = ~unified.str.contains(r"(?:Z|:\d\d(?:\.\d+)? ?[+-]\d\d:?(?:\d\d)?)$").to_numpy()
    return np.where(bare, _in_zone(times, options.zone), times)


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
    """(N,) text with 31/01/2024, 01/31/2024 and 31.01.2024 as 2024-01-31; what is no such date stays.

    Refuses an order of day and month that the column leaves open, unless ``unit`` names it.
    """
    import polars as pl

    parts = text.str.extract_groups(_SLASHED).struct.unnest()
    parts.columns = ["a", "mark", "b", "year", "rest"]
    known = parts.filter(pl.col("a").is_not_null())
    if not known.height:
        return text
    first, second = known["a"].cast(pl.Int32), known["b"].cast(pl.Int32)
    points = bool((known["mark"] == ".").all())  # between points nobody puts the month first
    possible = {
        "month-first": not points and bool((first <= 12).all() and (second <= 31).all()),
        "day-first": bool((second <= 12).all() and (first <= 31).all()),
    }
    orders = [order for order, holds in possible.items() if holds]
    orders = [unit] if unit in orders else orders
    if len(orders) != 1:
        fault = "is ambiguous" if orders else "puts the day first in some rows and the month first in others"
        raise InvalidInputError(
            f"{place}: {text.filter(parts['a'].is_not_null())[0]!r} {fault}; write dates as 2024-01-31, or give the "
            "option unit=day-first or unit=month-first"
        )
    month, day = (parts[one].str.zfill(2) for one in ("ab" if orders[0] == "month-first" else "ba"))
    iso = (parts["year"] + "-" + month + "-" + day + " " + parts["rest"].fill_null("")).str.strip_chars()
    return iso.zip_with(parts["a"].is_not_null(), text)


def _read_numbers(
    numbers: np.ndarray, written: polars.Series, place: str, lines: Lines, options: TableOptions
) -> tuple[Times, str]:
    """Times written as numbers: in ``options.unit``, or by their size alone, if all of a column agree.

    Whole numbers of 4, 6, 8, 10, 12 or 14 digits that are all calendar dates between 1900 and 2200 are those (2024,
    202401, 20240131, ...). Numbers from 1e8 are seconds since 1970, from 1e11 ms, from 1e14 us, from 1e17 ns.
    Everything else is refused: it may be a count, Excel's days, seconds of a day, or days since another day.
    """
    if not np.isfinite(numbers).all():
        row = int(np.argmin(np.isfinite(numbers)))
        raise InvalidInputError(f"{place} has no time in line {lines[row]}; fill it in or delete the row")
    unit, least, largest = options.unit, float(numbers.min()), float(numbers.max())
    if unit == "excel":
        # To the second where all are near to one: six decimals of a day are 86 ms.
        milliseconds = np.round(numbers.astype(np.float64) * 86_400_000).astype(np.int64)
        second = np.round(milliseconds / 1000).astype(np.int64) * 1000
        near = bool((np.abs(milliseconds - second) <= 50).all())
        excel: Times = (second if near else milliseconds) * 10**6 + _EXCEL_EPOCH_NS
        _refuse_far(excel // SECOND_NS, written, place, lines)
        return _in_zone(excel, options.zone), ""
    if unit in _UNIT_NS:
        _refuse_far(numbers * (_UNIT_NS[unit] / SECOND_NS), written, place, lines)
        return _in_zone(_scaled(numbers, _UNIT_NS[unit]), options.zone if unit == "days" else None), ""
    calendar = _calendar(numbers, place, lines)
    if calendar is not None:
        said = f"numbers such as {written[0]} were read as {np.datetime64(int(calendar[0]), 'ns').astype('M8[s]')}"
        return _in_zone(calendar, options.zone), said if largest < 1e7 or largest >= 1e8 else ""
    for size, name in _SIZES:
        if size <= least and largest <= _LATEST * (SECOND_NS // _UNIT_NS[name]):
            return _scaled(numbers, _UNIT_NS[name]), ""
    row = int(np.argmax(np.abs(numbers - np.median(numbers))))
    raise InvalidInputError(
        f"{place}, line {lines[row]}: {written[row]} may be seconds, days or a count, and is no time between 1973 and "
        "2200 for certain; write times as 2024-01-31 09:30:00, as 20240131, or as seconds since 1970, or give the "
        "option unit (excel for Excel's days)"
    )


def _scaled(numbers: np.ndarray, unit_ns: int) -> Times:
    full: Times = np.floor(numbers).astype(np.int64) * unit_ns
    if not np.issubdtype(numbers.dtype, np.integer):
        full += np.round((numbers - np.floor(numbers)) * unit_ns).astype(np.int64)
    return full


def _calendar(numbers: np.ndarray, place: str, lines: Lines) -> Times | None:
    """(N,) UTC ns of numbers that are dates by their digits; None where they are none."""
    import pandas as pd
    import polars as pl

    digits = len(str(int(numbers[0])))
    scale = 10 ** max(0, digits - 4)
    whole = bool((numbers == np.floor(numbers)).all())
    if (
        digits not in _CALENDAR
        or not whole
        or numbers.min() < 1900 * scale
        or numbers.max() >= (10_000 if digits == 8 else 2201) * scale
    ):
        return None
    parsed = pd.to_datetime(pd.Series(numbers.astype(np.int64)).astype(str), format=_CALENDAR[digits], errors="coerce")
    if parsed.isna().any():
        if digits in (10, 12):  # these may be seconds or milliseconds since 1970 as well
            return None
        row = int(np.argmax(parsed.isna().to_numpy()))
        raise InvalidInputError(f"{place}, line {lines[row]}: {int(numbers[row])} is not in the calendar; correct it")
    days = parsed.to_numpy()
    _refuse_far(days.astype("datetime64[s]").astype(np.int64), pl.Series(numbers), place, lines)
    times: Times = days.astype("datetime64[ns]").astype(np.int64)
    return times


def _refuse_far(seconds: np.ndarray, written: polars.Series, place: str, lines: Lines) -> None:
    """Refuses a time before 1900 or after 2200, ``seconds`` (N,) since 1970, with its line and as it is written."""
    far = (seconds < _EARLIEST) | (seconds > _LATEST)
    if far.any():
        row = int(np.argmax(far))
        raise InvalidInputError(
            f"{place}, line {lines[row]}: {str(written[row])!r} is not between 1900 and 2200; "
            "correct the date, or delete the row"
        )
