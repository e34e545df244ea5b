"""Times as exporters write them, to UTC nanoseconds. ``pandas.to_datetime`` reads dates; numbers are read by their
size.

What pandas cannot know is resolved first: which part of 01/02/2024 is the month, and what unit a number has.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias
from zoneinfo import ZoneInfo, available_timezones

import numpy as np
import pandas as pd
import polars as pl
from numpy.typing import NDArray

from apps.finance.adapters.options import DEFAULT_OPTIONS, TableOptions
from apps.finance.types import DAY_NS, HOUR_NS, SECOND_NS, Times
from shared.errors import InvalidInputError

Rows: TypeAlias = NDArray[np.int64]
_EARLIEST, _LATEST = -2_208_988_800, 7_258_118_400  # 1900 and 2200, in s
_CALENDAR = {4: "%Y", 6: "%Y%m", 8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
"""Formats of dates written as numbers, by the number of digits."""
_UNIT_NS = {"s": SECOND_NS, "ms": 10**6, "us": 10**3, "ns": 1, "days": DAY_NS, "excel": DAY_NS}
_MIN_NUMBER = {"ns": 1e17, "us": 1e14, "ms": 1e11, "s": 1e8}
"""The minimum number of each unit since 1970; from March 1973 on, no two units overlap."""
_PERIODS = {
    r"(?i)^(\d{4})[ /-]Q([1-4])$": "${1}Q${2}",
    r"(?i)^Q([1-4])[ /-]?(\d{4})$": "${2}Q${1}",
    r"^(\d{4})-S1$": "${1}-01-01",
    r"^(\d{4})-S2$": "${1}-07-01",
}
"""1960-Q1, Q1 1960 and SDMX's half-year 1960-S1, rewritten for pandas."""
_SEASON_NS = 60 * DAY_NS
"""Clocks are not set back for winter twice within this time."""
_OUT_OF_RANGE = "is not between 1900 and 2200; correct the date, or delete the row"
_SLASHED = r"^(\d{1,2})[/.-](\d{1,2})[/.-](\d{4})(?:$|[T,]? *)"
_SHORT_YEAR = r"^(\d{1,2}[/.-]\d{1,2}[/.-])(\d\d)($|[T, ])"
_ORDERS = {"day-first": "${3}-${2}-${1} ", "month-first": "${3}-${1}-${2} "}
_WITH_OFFSET = r"(?i)(?:Z|(?::\d\d|\d[T ]\d\d(?:\d\d){0,2})(?:[.,]\d+)?(?: ?[AP]M)? ?[+-]\d\d:?(?:\d\d)?)$"
"""A time with its offset from UTC, after a colon or in ISO 8601's basic form."""
_WEEKDAY = r"(?i)^(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*[.,]* +"
_TIME_FIRST = r"(?i)^(\d{1,2}:\d\d(?::\d\d)?(?:\.\d+)?(?: ?[AP]M)?)[ ,]+(\d{1,2}[/.-]\d{1,2}[/.-]\d{4})$"
_AMBIGUOUS = r"(?:^|[^\d/.:-])\d{1,2}[/.-]\d{1,2}[/.-]\d{2}(?:\d\d)?(?![\d:])"
"""A date, anywhere in the text, whose month may be first or second."""
_COMPACT = r"^(\d{4})(\d\d)(\d\d)(?: +|[;-])(\d\d):?(\d\d):?(\d\d)$"
"""20240131  09:30:00, 20240131;093000 and 20240131-14:30:00, as Interactive Brokers writes them."""
_REGION = r"\d +([A-Z][A-Za-z]+/[A-Z][\w/+-]+)$"
"""A time followed by its zone, such as 20240131 09:30:00 US/Eastern."""
_ABBREVIATION = r"(\d|[AP]M) ?[A-Z]{3,5}$"
_ZONE_IN_HEADER = re.compile(r"(?i)(?<![a-z])(?:UTC|GMT)(?![a-z])(?:\s?([+-])\s?(\d{1,2})(?::?(\d\d))?(?!\d))?")
_REGION_IN_HEADER = re.compile(r"[(\[]([A-Z]\w+(?:/[A-Z][\w-]+)+)[)\]]")
_SHORT_IN_HEADER = re.compile(r"[(\[]([ECMP][SD]?T|CES?T|MES?Z|[WE]ES?T|BST|[JKIHM]ST|MSK|HKT|SGT|AE[SD]T)[)\]]")
_ROUNDED = r"(?i)^\d[.,]\d{1,6}E\+?\d+$"
"""1.70669E+12, as spreadsheets show long numbers: no time in seconds has so few digits."""


@dataclass(frozen=True, slots=True)
class Column:
    """The cells of a time column, its location in words, and the line number of each row."""

    cells: pl.Series
    location: str
    lines: NDArray[np.int64]

    def refuse(self, is_wrong: NDArray[np.bool_], why: str) -> None:
        """Raises InvalidInputError for the first row in which ``is_wrong`` (N,) is true."""
        if is_wrong.any():
            row = int(np.argmax(is_wrong))
            raise InvalidInputError(f"{self.location}, line {self.lines[row]}: {str(self.cells[row])!r} {why}")


@dataclass(frozen=True, slots=True)
class Clock:
    """Times (N,): in UTC, or local times where ``lacks_zone`` (N,) is true; ``note`` describes how they were read.

    ``zone`` is the zone that every cell states after its time, if it does.
    """

    times_ns: Times
    lacks_zone: NDArray[np.bool_]
    note: str = ""
    zone: str | None = None


def read_times(column: Column, options: TableOptions = DEFAULT_OPTIONS) -> Clock:
    """The times in a column of text, numbers, dates or datetimes.

    Raises InvalidInputError for a cell that is not unambiguously a time from 1900 to 2200.
    """
    cells, kind = column.cells, column.cells.dtype
    column.refuse(cells.is_null().to_numpy(), "is not a time; fill in the cell or delete the row")
    if isinstance(kind, (pl.Date, pl.Datetime)):
        dated = cells.cast(pl.Datetime("us")) if kind == pl.Date else cells
        moments = dated.to_physical().to_numpy().astype(f"datetime64[{getattr(kind, 'time_unit', 'us')}]")
        return Clock(_nanoseconds(moments, column), np.full(len(cells), getattr(kind, "time_zone", None) is None))
    if kind.is_numeric():
        return _read_numbers((cells if kind.is_integer() else cells.cast(pl.Float64)).to_numpy(), column, options.unit)
    if kind != pl.String:
        raise InvalidInputError(
            f"{column.location} holds {kind}, which is not a time; write times as 2024-01-31 09:30:00"
        )
    text = cells.str.strip_chars(" \"'")
    for pattern, period in _PERIODS.items():
        text = text.str.replace(pattern, period)
    rounded = text.str.contains(_ROUNDED)
    if rounded.sum() == text.str.contains(r"(?i)^\d[.,]?\d*e").sum():
        remedy = "format the column as a number without decimals in the original file, and save it again"
        column.refuse(rounded.to_numpy(), f"is rounded, as spreadsheets show long numbers; {remedy}")
    for number in (pl.Int64, pl.Float64):
        parsed = (text.str.replace(",", ".") if options.decimal == "," else text).cast(number, strict=False)
        if not parsed.null_count():
            return _read_numbers(parsed.to_numpy(), column, options.unit)
    return _read_text(text, column, options)


def zone_in_header(column: Column, label: str, clock: Clock) -> str | None:
    """The zone in a time column's ``label``, as in Date(UTC+8); None if it has none. Raises InvalidInputError for an
    abbreviation of a zone."""
    if not clock.lacks_zone.any():
        return None
    if match := _ZONE_IN_HEADER.search(label):
        sign, hours, minutes = match.groups()
        return f"UTC{sign}{int(hours):02d}:{minutes or '00'}" if sign else "UTC"
    if (match := _REGION_IN_HEADER.search(label)) and match[1] in available_timezones():
        return match[1]
    if (match := _SHORT_IN_HEADER.search(label)) and (clock.times_ns % DAY_NS).any():
        why = "which may mean several zones or part of one; name the zone with the option 'zone', such as Europe/Berlin"
        raise InvalidInputError(f"{column.location} is in {match[1]} according to its name, {why}")
    return None


def to_utc(clock: Clock, parts: Iterable[Rows], column: Column, zone: str | None, notes: list[str]) -> Times:
    """(N,) UTC ns of local times in ``zone``; ``parts`` are the rows of each series.

    In an hour that occurs twice in autumn, ``_second_hour`` determines which rows are in the second one. Times in an
    hour that is skipped in spring raise InvalidInputError, except in a column of dates. Without a zone, times are UTC,
    and a clock that seems to be set back for winter raises InvalidInputError, see ``_clock_set_back``.
    """
    local_ns = first_ns = second_ns = clock.times_ns
    if zone is not None:
        local_index, summer = pd.DatetimeIndex(local_ns.astype("datetime64[ns]")), np.ones(len(local_ns), bool)
        localised = local_index.tz_localize(zone, ambiguous=summer, nonexistent="shift_forward")
        skipped = np.asarray(localised.tz_localize(None) != local_index) & clock.lacks_zone
        if (local_ns[clock.lacks_zone] % DAY_NS).any():
            why = f"is in an hour that does not exist in {zone}; give the zone of the times with the option 'zone'"
            column.refuse(skipped, f"{why} (UTC, ...), or delete the row")
        first_ns = localised.asi8
        second_ns = local_index.tz_localize(zone, ambiguous=~summer, nonexistent="shift_forward").asi8.copy()
    is_repeated = (first_ns != second_ns) & clock.lacks_zone
    methods: set[str] = set()
    for rows in parts:
        newest_first = local_ns[rows[0]] > local_ns[rows[-1]]
        rows = rows[::-1] if newest_first else rows
        steps = np.diff(local_ns[rows], prepend=local_ns[rows[0]] - 1)
        if zone is None and (steps <= 0).any():
            set_back_rows = rows[_clock_set_back(local_ns[rows], steps) & clock.lacks_zone[rows]]
            why = (
                "is about an hour back, as at the end of summer time; name the zone of the times with the option 'zone'"
            )
            column.refuse(np.isin(np.arange(len(local_ns)), set_back_rows[:1]), why)
        repeated_rows = rows[is_repeated[rows]]
        for night in (
            np.split(repeated_rows, np.flatnonzero(np.diff(local_ns[repeated_rows] // DAY_NS)) + 1)
            if len(repeated_rows)
            else []
        ):
            second, method = _second_hour(local_ns[night], newest_first)
            if not method:
                why = (
                    f"is in an hour that occurs twice in {zone}, and the order of rows does not say which; write times"
                )
                column.refuse(
                    np.isin(np.arange(len(local_ns)), night[:1]), f"{why} in UTC, or with an offset like +01:00"
                )
            second_ns[night[~second]] = first_ns[night[~second]]
            methods.add(method)
    if is_repeated.any():
        rows_lie = "rows lie" if is_repeated.sum() > 1 else "row lies"
        notes.append(
            f"{is_repeated.sum()} {rows_lie} in an hour that occurs twice in {zone}; {', or '.join(sorted(methods))}"
        )
    return np.where(clock.lacks_zone, second_ns, local_ns)


def _second_hour(local_ns: Times, newest_first: bool) -> tuple[NDArray[np.bool_], str]:
    """(N,) which rows of an hour that occurs twice in a night are in the second one, and how that was determined, empty
    if it was not.

    These are the rows from the single backward step on; if single rows came late, from the one backward step of at
    least half an hour. Rows sorted by local time have no such step; then of each two with the same time the second one.
    """
    steps, no_rows = np.diff(local_ns), np.zeros(len(local_ns), bool)
    if (steps < 0).any():
        is_backward = steps < 0 if (steps < 0).sum() == 1 else steps <= -HOUR_NS // 2
        method = "the order of rows determined the later hour" if is_backward.sum() == 1 else ""
        return np.append(False, np.maximum.accumulate(is_backward)), method
    if not (steps == 0).any():
        return no_rows, "each time occurs once and was taken as the earlier hour"
    pairs = len(local_ns) % 2 == 0 and not steps[::2].any() and steps[1::2].all()
    if not pairs or (newest_first and len(local_ns) > 2):
        return no_rows, ""
    return np.arange(len(local_ns)) % 2 == 1, "of two rows with the same time, the first was taken as the earlier hour"


def _clock_set_back(local_ns: Times, steps: Times) -> NDArray[np.bool_]:
    """(N,) the rows at which summer time seems to end, from local times and the ``steps`` to them.

    Either a regular clock is an hour back on a Sunday night, which for hourly rows repeats the same hour; or the clock
    is half an hour to an hour back on any night, the rows continue from there, and rows are not out of order elsewhere.
    """
    typical = int(np.median(steps[1:]))
    local = pd.DatetimeIndex(local_ns.astype("datetime64[ns]"))
    is_early = np.asarray(local.hour < 4)
    regular = (steps == typical - HOUR_NS) & (0 < typical <= HOUR_NS) & (local.dayofweek == 6) & is_early
    backward_rows = np.flatnonzero(steps < 0)
    is_only_step = (np.diff(local_ns[backward_rows]) > _SEASON_NS).all()
    continues = np.append(steps[1:], 0) < -steps  # a late row would be followed by a longer step forward
    ticks = (steps >= -HOUR_NS) & (steps <= -HOUR_NS // 2) & (is_early | (local.hour >= 22)) & continues & is_only_step
    return np.asarray(regular | ticks)


def _read_text(text: pl.Series, column: Column, options: TableOptions) -> Clock:
    text = text.str.replace(r"^(\d{4})年(\d{1,2})月(\d{1,2})日", "${1}-${2}-${3}")
    text, zone = _without_region(text, column)
    text = text.str.replace(_COMPACT, "${1}-${2}-${3} ${4}:${5}:${6}")
    offsets = {"UTC": "+0000", "GMT": "+0000"}
    text = text.str.replace(r"(?:UTC|GMT) ?([+-]\d)", "${1}")
    if text.str.contains(_ABBREVIATION).any():
        for moment in (datetime(year, month, 1) for year in range(1970, 2038) for month in (1, 7) if options.zone):
            local = moment.replace(tzinfo=ZoneInfo(options.zone or "UTC"))  # EST is -0500, EDT -0400
            offsets |= {f"{local:%Z}": f"{local:%z}"} if f"{local:%Z}".isalpha() else {}
        for short, offset in offsets.items():
            text = text.str.replace(rf"(\d|[AP]M) ?{short}$", "${1}" + offset)
    weeks = (text + "-1").str.to_date("%G-W%V-%u", strict=False)  # their Mondays
    text = weeks.cast(pl.String).fill_null(text)
    text = text.str.replace(_WEEKDAY, "").str.replace(_TIME_FIRST, "${2} ${1}")
    text = _in_iso_order(text, column, options.unit)
    parsed = _parsed(text)
    is_unparsed = parsed.isna().to_numpy()
    unknown_zone = (
        f"ends with an unknown abbreviation (known: {', '.join(offsets)}); name its zone with the option 'zone'"
    )
    column.refuse(is_unparsed & text.str.contains(_ABBREVIATION).to_numpy(), unknown_zone)
    column.refuse(is_unparsed, "is not a time; write it as 2024-01-31 09:30:00 (UTC), or with an offset like +01:00")
    times = _nanoseconds(parsed.dt.tz_localize(None).to_numpy(), column)
    return Clock(times, ~text.str.contains(_WITH_OFFSET).to_numpy(), zone=zone)


def _without_region(text: pl.Series, column: Column) -> tuple[pl.Series, str | None]:
    """(N,) times without a trailing zone such as US/Eastern, and that zone. Raises InvalidInputError if cells have
    different zones."""
    regions = text.str.extract(_REGION, 1)
    known = regions.drop_nulls()
    if not len(known) or known[0] not in available_timezones():
        return text, None
    is_other_zone = (regions != known[0]).fill_null(value=True).to_numpy()
    column.refuse(is_other_zone, f"is not in {known[0]}, unlike other rows; write the times of all rows in one zone")
    return text.str.replace(r" +[A-Z][\w/+-]+$", ""), str(known[0])


def _in_iso_order(text: pl.Series, column: Column, unit: str | None) -> pl.Series:
    """(N,) text with 31/01/2024, 01/31/2024, 01/31/24 and 31.01.2024 as 2024-01-31. Raises InvalidInputError if the
    rows leave the order ambiguous: in 31/01/24 either end may be the year."""
    written, has_short_years = text, text.str.contains(_SHORT_YEAR).any()
    if has_short_years:  # 69 to 99 are of the last century, as in POSIX
        text = text.str.replace(_SHORT_YEAR.replace(r"\d\d", r"69|[7-9]\d"), "${1}19${2}${3}")
        text = text.str.replace(_SHORT_YEAR, "${1}20${2}${3}")
    slashed = text.filter(text.str.contains(_SLASHED))
    if not len(slashed):
        return text
    points = bool(slashed.str.contains(r"^\d+\.").all())  # dates with points never have the month first
    first_above_12, second_above_12 = (
        bool(slashed.str.contains(before + r"(1[3-9]|[2-9]\d)").any()) for before in (r"^", r"^\d+[/.-]")
    )
    possible = {
        "day-first": not second_above_12 and (not has_short_years or unit == "day-first"),
        "month-first": not first_above_12
        and not points
        and (not has_short_years or second_above_12 or unit in _ORDERS),
    }
    orders = [order for order, holds in possible.items() if holds and (unit == order or unit not in _ORDERS)]
    if len(orders) != 1:
        remedy = "write dates as 2024-01-31, or give the option unit=day-first or unit=month-first"
        shown = written.filter(text.str.contains(_SLASHED))
        dates = f"{shown[0]!r} and {shown[-1]!r}"
        raise InvalidInputError(f"{column.location}: the order of day and month is ambiguous in {dates}; {remedy}")
    return text.str.replace(_SLASHED, _ORDERS[orders[0]]).str.strip_chars()


def _parsed(text: pl.Series) -> Any:
    """(N,) UTC times as a pandas Series; NaT where there is none, or if more than 200,000 distinct cells are not in ISO
    8601."""
    cells = pd.Series(text.to_list(), dtype=object)
    times = pd.to_datetime(cells, format="ISO8601", utc=True, errors="coerce")
    # Read words only together with a four-digit year: "Jan-24" may be a day or a year, and "24" alone anything.
    unparsed = cells[times.isna()].drop_duplicates()
    unparsed = unparsed[unparsed.str.contains(r"\d{4}") & unparsed.str.contains(r"[A-Za-z]{3}|[AaPp][Mm]|\dQ[1-4]")]
    # Do not let pandas guess the order of 03/06/2024 cell by cell.
    unparsed = unparsed[~unparsed.str.contains(_AMBIGUOUS)]
    if not 0 < len(unparsed) <= 200_000:
        return times
    with warnings.catch_warnings(action="ignore"):
        parsed_words = pd.to_datetime(unparsed, format="mixed", utc=True, errors="coerce")
    return pd.to_datetime(
        times.where(times.notna(), cells.map(dict(zip(unparsed, parsed_words, strict=True)))), utc=True
    )


def _read_numbers(numbers: NDArray[Any], column: Column, unit: str | None) -> Clock:
    """Times written as numbers: in ``unit``, or by their digits or size if the whole column agrees."""
    column.refuse(~np.isfinite(numbers), "is not a time; fill it in or delete the row")
    note = ""
    if unit not in _UNIT_NS:
        first_digits, distance_from_median = str(int(numbers[0])), np.abs(numbers - np.median(numbers))
        form, is_wrong = (
            _CALENDAR.get(len(first_digits)) if "1900" <= first_digits[:4] < "2201" else None,
            distance_from_median == distance_from_median.max(),
        )
        if form is not None and not (numbers % 1).any() and np.abs(numbers).max() < 1e15:
            dates = pd.to_datetime(pd.Series(numbers).astype("int64").astype(str), format=form, errors="coerce")
            if dates.dt.year.between(1900, 2199).all():
                note = f"numbers such as {column.cells[0]} were read as {dates[0].isoformat()}"
                times = _nanoseconds(dates.to_numpy(), column)
                return Clock(times, np.ones(len(times), bool), "" if form == "%Y%m%d" else note)
            is_wrong = dates.isna().to_numpy() if dates.isna().nunique() == 2 else is_wrong
        numbers, note = _in_one_unit(numbers)
        unit = next((candidate for candidate, minimum in _MIN_NUMBER.items() if minimum <= numbers.min()), "")
        if not unit or numbers.max() > _LATEST * SECOND_NS / _UNIT_NS[unit]:
            why = "may be seconds, days or a count, not clearly a time from 1973 to 2200; write times as"
            column.refuse(
                is_wrong, f"{why} 2024-01-31 09:30:00 or 20240131, or give the option unit (excel, days, ...)"
            )
    unit_ns = _UNIT_NS[unit]
    since_1970 = numbers - 25_569 if unit == "excel" else numbers  # Excel counts days from the end of 1899
    seconds = since_1970 * (unit_ns / SECOND_NS)
    column.refuse((seconds < _EARLIEST) | (seconds > _LATEST), _OUT_OF_RANGE)
    whole_units = np.floor(since_1970).astype(np.int64)
    times = whole_units * unit_ns
    if not np.issubdtype(numbers.dtype, np.integer):
        times += np.round((since_1970 - whole_units) * unit_ns).astype(np.int64)
    if unit == "excel":  # rounded to seconds, because six decimals of a day are 86 ms
        times = (times + SECOND_NS // 2) // SECOND_NS * SECOND_NS
    return Clock(times, np.full(len(times), unit_ns == DAY_NS), note)


def _in_one_unit(numbers: NDArray[Any]) -> tuple[NDArray[Any], str]:
    """(N,) all in us, and a note, if the earlier times are in ms and the later ones in us, as in Binance's files of
    2024 and 2025 below each other; unchanged otherwise."""
    is_us = numbers >= _MIN_NUMBER["us"]
    if is_us.all() or not is_us.any() or numbers.min() < _MIN_NUMBER["ms"]:
        return numbers, ""
    in_us = np.where(is_us, numbers, numbers * 1000)
    if numbers.max() >= _MIN_NUMBER["ns"] or in_us[~is_us].max() >= in_us[is_us].min():
        return numbers, ""
    earlier, later = int((~is_us).sum()), int(is_us.sum())
    times_were, ones = "times were" if earlier > 1 else "time was", "ones" if later > 1 else "one"
    return in_us, f"{earlier} {times_were} read as milliseconds and the {later} later {ones} as microseconds"


def _nanoseconds(moments: NDArray[Any], column: Column) -> Times:
    """(N,) ns from datetime64 of any unit. Raises InvalidInputError for times outside 1900 to 2200."""
    seconds = moments.astype("datetime64[s]").astype(np.int64)
    column.refuse((seconds < _EARLIEST) | (seconds > _LATEST), _OUT_OF_RANGE)
    return moments.astype("datetime64[ns]").astype(np.int64)
