"""Times as exporters write them, to UTC nanoseconds. Dates are read by ``pandas.to_datetime``; numbers by their size.

What pandas cannot know is settled before: which of 01/02/2024 is the month, and what a bare number counts.
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

from apps.finance.adapters.options import NOTHING_SAID, TableOptions
from apps.finance.types import DAY_NS, HOUR_NS, SECOND_NS, Times
from shared.errors import InvalidInputError

Rows: TypeAlias = NDArray[np.int64]
_EARLIEST, _LATEST = -2_208_988_800, 7_258_118_400  # 1900 and 2200, in s
_CALENDAR = {4: "%Y", 6: "%Y%m", 8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
"""Calendar numbers by their digits."""
_UNIT_NS = {"s": SECOND_NS, "ms": 10**6, "us": 10**3, "ns": 1, "days": DAY_NS, "excel": DAY_NS}
_LEAST = {"ns": 1e17, "us": 1e14, "ms": 1e11, "s": 1e8}
"""The least number of each unit since 1970: from March 1973 on, no two units overlap."""
_QUARTERS = {r"(?i)^(\d{4})[ /-]Q([1-4])$": "${1}Q${2}", r"(?i)^Q([1-4])[ /-]?(\d{4})$": "${2}Q${1}"}
"""1960-Q1 and Q1 1960, as pandas reads them."""
_SEASON_NS = 60 * DAY_NS
"""No clock is put back for the winter twice within so long."""
_FAR = "is not between 1900 and 2200; correct the date, or delete the row"
_SLASHED = r"^(\d{1,2})[/.-](\d{1,2})[/.-](\d{4})(?:$|[T,]? *)"
_ORDERS = {"day-first": "${3}-${2}-${1} ", "month-first": "${3}-${1}-${2} "}
_WITH_OFFSET = r"(?i)(?:Z|(?::\d\d|\d[T ]\d\d(?:\d\d){0,2})(?:[.,]\d+)?(?: ?[AP]M)? ?[+-]\d\d:?(?:\d\d)?)$"
"""A time with its distance from UTC, behind a colon or in ISO 8601's basic form."""
_WEEKDAY = r"(?i)^(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*[.,]* +"
_TIME_FIRST = r"(?i)^(\d{1,2}:\d\d(?::\d\d)?(?:\.\d+)?(?: ?[AP]M)?)[ ,]+(\d{1,2}[/.-]\d{1,2}[/.-]\d{4})$"
_AMBIGUOUS = r"(?:^|[^\d/.:-])\d{1,2}[/.-]\d{1,2}[/.-]\d{2}(?:\d\d)?(?![\d:])"
"""A date of which the month may be first or second, anywhere."""
_COMPACT = r"^(\d{4})(\d\d)(\d\d)(?: +|[;-])(\d\d):?(\d\d):?(\d\d)$"
"""20240131  09:30:00, 20240131;093000 and 20240131-14:30:00, as Interactive Brokers writes them."""
_REGION = r"\d +([A-Z][A-Za-z]+/[A-Z][\w/+-]+)$"
"""A time with its zone behind it, as 20240131 09:30:00 US/Eastern."""
_ABBREVIATION = r"(\d|[AP]M) ?[A-Z]{3,5}$"
_ZONE_IN_HEADER = re.compile(r"(?i)(?<![a-z])(?:UTC|GMT)(?![a-z])(?:\s?([+-])\s?(\d{1,2})(?::?(\d\d))?(?!\d))?")
_REGION_IN_HEADER = re.compile(r"[(\[]([A-Z]\w+(?:/[A-Z][\w-]+)+)[)\]]")
_SHORT_IN_HEADER = re.compile(r"[(\[]([ECMP][SD]?T|CES?T|MES?Z|[WE]ES?T|BST|[JKIHM]ST|MSK|HKT|SGT|AE[SD]T)[)\]]")
_ROUNDED = r"(?i)^\d[.,]\d{1,6}E\+?\d+$"
"""1.70669E+12, as spreadsheets show long numbers: no time to the second has so few digits."""


@dataclass(frozen=True, slots=True)
class Column:
    """The cells of a column of times, its place in words, and the line of each row."""

    cells: pl.Series
    place: str
    lines: NDArray[np.int64]

    def refuse(self, wrong: NDArray[np.bool_], why: str) -> None:
        """Refuses the first row in which ``wrong`` (N,) is true."""
        if wrong.any():
            row = int(np.argmax(wrong))
            raise InvalidInputError(f"{self.place}, line {self.lines[row]}: {str(self.cells[row])!r} {why}")


@dataclass(frozen=True, slots=True)
class Clock:
    """Times in UTC, (N,), or as they stand where ``bare`` (N,) says they have no zone; ``said`` is of the reading.

    ``zone`` is the one that every cell names behind its time, if it does.
    """

    times_ns: Times
    bare: NDArray[np.bool_]
    said: str = ""
    zone: str | None = None


def read_times(column: Column, options: TableOptions = NOTHING_SAID) -> Clock:
    """The times in a column of text, numbers, dates or datetimes; refuses what is no certain time from 1900 to 2200."""
    cells, kind = column.cells, column.cells.dtype
    column.refuse(cells.is_null().to_numpy(), "is no time; fill in the cell or delete the row")
    if isinstance(kind, (pl.Date, pl.Datetime)):
        dated = cells.cast(pl.Datetime("us")) if kind == pl.Date else cells
        moments = dated.to_physical().to_numpy().astype(f"datetime64[{getattr(kind, 'time_unit', 'us')}]")
        return Clock(_nanoseconds(moments, column), np.full(len(cells), getattr(kind, "time_zone", None) is None))
    if kind.is_numeric():
        return _read_numbers((cells if kind.is_integer() else cells.cast(pl.Float64)).to_numpy(), column, options.unit)
    if kind != pl.String:
        raise InvalidInputError(f"{column.place} holds {kind}, which is no time; write times as 2024-01-31 09:30:00")
    text = cells.str.strip_chars(" \"'")
    for pattern, quarter in _QUARTERS.items():
        text = text.str.replace(pattern, quarter)
    rounded = text.str.contains(_ROUNDED)
    if rounded.sum() == text.str.contains(r"(?i)^\d[.,]?\d*e").sum():
        how = "format the column as a number without decimals where it is still whole, and save again"
        column.refuse(rounded.to_numpy(), f"is rounded, as spreadsheets show long numbers; {how}")
    for number in (pl.Int64, pl.Float64):
        parsed = (text.str.replace(",", ".") if options.decimal == "," else text).cast(number, strict=False)
        if not parsed.null_count():
            return _read_numbers(parsed.to_numpy(), column, options.unit)
    return _read_text(text, column, options)


def zone_in_header(column: Column, label: str, clock: Clock) -> str | None:
    """The zone that ``label`` says the times of a column are in, as in Date(UTC+8); refuses an abbreviation of one."""
    if not clock.bare.any():
        return None
    if found := _ZONE_IN_HEADER.search(label):
        sign, hours, minutes = found.groups()
        return f"UTC{sign}{int(hours):02d}:{minutes or '00'}" if sign else "UTC"
    if (found := _REGION_IN_HEADER.search(label)) and found[1] in available_timezones():
        return found[1]
    if (found := _SHORT_IN_HEADER.search(label)) and (clock.times_ns % DAY_NS).any():
        why = "which may be several zones or a part of one; name the zone with the option 'zone', as Europe/Berlin"
        raise InvalidInputError(f"{column.place} is in {found[1]} by its name, {why}")
    return None


def to_utc(clock: Clock, parts: Iterable[Rows], column: Column, zone: str | None, notes: list[str]) -> Times:
    """(N,) UTC ns of times as a clock in ``zone`` showed them; ``parts`` are the rows of each series.

    Of an hour that comes twice in autumn ``_second_hour`` says which rows are the later; an hour that is skipped in
    spring is refused, but for dates. Without a zone times are UTC, and a clock that seems to go back for the winter is
    refused, see ``_set_back``.
    """
    shown = early = late = clock.times_ns
    if zone is not None:
        local, summer = pd.DatetimeIndex(shown.astype("datetime64[ns]")), np.ones(len(shown), bool)
        first = local.tz_localize(zone, ambiguous=summer, nonexistent="shift_forward")
        skipped = np.asarray(first.tz_localize(None) != local) & clock.bare
        if (shown[clock.bare] % DAY_NS).any():
            why = f"is an hour that the clock of {zone} skips; say with the option 'zone' in which zone it was written"
            column.refuse(skipped, f"{why} (UTC, ...), or delete the row")
        early = first.asi8
        late = local.tz_localize(zone, ambiguous=~summer, nonexistent="shift_forward").asi8.copy()
    twice = (early != late) & clock.bare
    told: set[str] = set()
    for rows in parts:
        newest_first = shown[rows[0]] > shown[rows[-1]]
        rows = rows[::-1] if newest_first else rows
        steps = np.diff(shown[rows], prepend=shown[rows[0]] - 1)
        if zone is None and (steps <= 0).any():
            back = rows[_set_back(shown[rows], steps) & clock.bare[rows]]
            why = "is about an hour back, as where summer time ends; name the zone of the times with the option 'zone'"
            column.refuse(np.isin(np.arange(len(shown)), back[:1]), why)
        ours = rows[twice[rows]]
        for night in np.split(ours, np.flatnonzero(np.diff(shown[ours] // DAY_NS)) + 1) if len(ours) else []:
            second, how = _second_hour(shown[night], newest_first)
            if not how:
                why = f"is in an hour that {zone} has twice, and the order of rows does not tell which; write the times"
                column.refuse(np.isin(np.arange(len(shown)), night[:1]), f"{why} in UTC, or with +01:00 behind them")
            late[night[~second]] = early[night[~second]]
            told.add(how)
    if twice.any():
        notes.append(f"{twice.sum()} rows lie in an hour that {zone} has twice; {', or '.join(sorted(told))}")
    return np.where(clock.bare, late, shown)


def _second_hour(shown: Times, newest_first: bool) -> tuple[NDArray[np.bool_], str]:
    """(N,) which rows of an hour that comes twice in a night are of the second one, and how that was told, if it was.

    Those from the one step back on, or the one of half an hour and more where single rows came late. Rows sorted by the
    clock have no such step: of two with the same time the second.
    """
    steps, none = np.diff(shown), np.zeros(len(shown), bool)
    if (steps < 0).any():
        back = steps < 0 if (steps < 0).sum() == 1 else steps <= -HOUR_NS // 2
        how = "their order told which was the later" if back.sum() == 1 else ""
        return np.append(False, np.maximum.accumulate(back)), how
    if not (steps == 0).any():
        return none, "each time is there once and was taken for the earlier hour"
    pairs = len(shown) % 2 == 0 and not steps[::2].any() and steps[1::2].all()
    if not pairs or (newest_first and len(shown) > 2):
        return none, ""
    return np.arange(len(shown)) % 2 == 1, "of two with the same time the first was taken for the earlier hour"


def _set_back(shown: Times, steps: Times) -> NDArray[np.bool_]:
    """(N,) the rows at which summer time seems to end, by clock times and the ``steps`` to them.

    Those are an hour back in a regular clock on a Sunday night, which for hourly rows is the same hour again; and half
    an hour to an hour back on any night, where the rows go on from there and are not out of order elsewhere.
    """
    usual = int(np.median(steps[1:]))
    local = pd.DatetimeIndex(shown.astype("datetime64[ns]"))
    early = np.asarray(local.hour < 4)
    regular = (steps == usual - HOUR_NS) & (0 < usual <= HOUR_NS) & (local.dayofweek == 6) & early
    back = np.flatnonzero(steps < 0)
    alone = (np.diff(shown[back]) > _SEASON_NS).all()
    onward = np.append(steps[1:], 0) < -steps  # a row that came late is followed by a longer step forward
    ticks = (steps >= -HOUR_NS) & (steps <= -HOUR_NS // 2) & (early | (local.hour >= 22)) & onward & alone
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
    text = text.str.replace(_WEEKDAY, "").str.replace(_TIME_FIRST, "${2} ${1}")
    text = _in_iso_order(text, column, options.unit)
    found = _parsed(text)
    wrong = found.isna().to_numpy()
    known = f"ends with no abbreviation that is known ({', '.join(offsets)}); name its zone with the option 'zone'"
    column.refuse(wrong & text.str.contains(_ABBREVIATION).to_numpy(), known)
    column.refuse(wrong, "is not a time; write it as 2024-01-31 09:30:00 (UTC), or with +01:00 behind it")
    times = _nanoseconds(found.dt.tz_localize(None).to_numpy(), column)
    return Clock(times, ~text.str.contains(_WITH_OFFSET).to_numpy(), zone=zone)


def _without_region(text: pl.Series, column: Column) -> tuple[pl.Series, str | None]:
    """(N,) times without the zone behind them, as US/Eastern, and that zone; refuses cells of several zones."""
    regions = text.str.extract(_REGION, 1)
    known = regions.drop_nulls()
    if not len(known) or known[0] not in available_timezones():
        return text, None
    other = (regions != known[0]).fill_null(value=True).to_numpy()
    column.refuse(other, f"is not in {known[0]}, as others are; write the times of all rows in one zone")
    return text.str.replace(r" +[A-Z][\w/+-]+$", ""), str(known[0])


def _in_iso_order(text: pl.Series, column: Column, unit: str | None) -> pl.Series:
    """(N,) text with 31/01/2024, 01/31/2024 and 31.01.2024 as 2024-01-31; refuses an order that the rows leave open."""
    slashed = text.filter(text.str.contains(_SLASHED))
    if not len(slashed):
        return text
    points = bool(slashed.str.contains(r"^\d+\.").all())  # between points nobody puts the month first
    possible = {
        "day-first": not slashed.str.contains(r"^\d+[/.-](1[3-9]|[2-9]\d)").any(),
        "month-first": not points and not slashed.str.contains(r"^(1[3-9]|[2-9]\d)").any(),
    }
    orders = [order for order, holds in possible.items() if holds and (unit == order or unit not in _ORDERS)]
    if len(orders) != 1:
        how = "write dates as 2024-01-31, or give the option unit=day-first or unit=month-first"
        raise InvalidInputError(f"{column.place}: {slashed[0]!r} is ambiguous beside {slashed[-1]!r}; {how}")
    return text.str.replace(_SLASHED, _ORDERS[orders[0]]).str.strip_chars()


def _parsed(text: pl.Series) -> Any:
    """(N,) UTC moments as a pandas Series, NaT where there is none or more than 200,000 are written in words."""
    cells = pd.Series(text.to_list(), dtype=object)
    found = pd.to_datetime(cells, format="ISO8601", utc=True, errors="coerce")
    # Words are read only beside four digits of a year: "Jan-24" may be a day or a year, and "24" alone anything.
    rest = cells[found.isna()].drop_duplicates()
    rest = rest[rest.str.contains(r"\d{4}") & rest.str.contains(r"[A-Za-z]{3}|[AaPp][Mm]|\dQ[1-4]")]
    # Nor is the order of 03/06/2024 guessed, cell by cell.
    rest = rest[~rest.str.contains(_AMBIGUOUS)]
    if not 0 < len(rest) <= 200_000:
        return found
    with warnings.catch_warnings(action="ignore"):
        read = pd.to_datetime(rest, format="mixed", utc=True, errors="coerce")
    return pd.to_datetime(found.where(found.notna(), cells.map(dict(zip(rest, read, strict=True)))), utc=True)


def _read_numbers(numbers: NDArray[Any], column: Column, unit: str | None) -> Clock:
    """Times written as numbers: in ``unit``, or by their digits or size alone, if all of a column agree."""
    column.refuse(~np.isfinite(numbers), "is no time; fill it in or delete the row")
    if unit not in _UNIT_NS:
        first, far = str(int(numbers[0])), np.abs(numbers - np.median(numbers))
        form, wrong = _CALENDAR.get(len(first)) if "1900" <= first[:4] < "2201" else None, far == far.max()
        if form is not None and not (numbers % 1).any() and np.abs(numbers).max() < 1e15:
            dates = pd.to_datetime(pd.Series(numbers).astype("int64").astype(str), format=form, errors="coerce")
            if dates.dt.year.between(1900, 2199).all():
                said = f"numbers such as {column.cells[0]} were read as {dates[0].isoformat()}"
                times = _nanoseconds(dates.to_numpy(), column)
                return Clock(times, np.ones(len(times), bool), "" if form == "%Y%m%d" else said)
            wrong = dates.isna().to_numpy() if dates.isna().nunique() == 2 else wrong
        unit = next((one for one, least in _LEAST.items() if least <= numbers.min()), "")
        if not unit or numbers.max() > _LATEST * SECOND_NS / _UNIT_NS[unit]:
            why = "may be seconds, days or a count, and is no time from 1973 to 2200 for certain; write times as"
            column.refuse(wrong, f"{why} 2024-01-31 09:30:00 or 20240131, or give the option unit (excel, days, ...)")
    per = _UNIT_NS[unit]
    since = numbers - 25_569 if unit == "excel" else numbers  # from 1970 on
    seconds = since * (per / SECOND_NS)
    column.refuse((seconds < _EARLIEST) | (seconds > _LATEST), _FAR)
    whole = np.floor(since).astype(np.int64)
    times = whole * per
    if not np.issubdtype(numbers.dtype, np.integer):
        times += np.round((since - whole) * per).astype(np.int64)
    if unit == "excel":  # to the second: six decimals of a day are 86 ms
        times = (times + SECOND_NS // 2) // SECOND_NS * SECOND_NS
    return Clock(times, np.full(len(times), per == DAY_NS))


def _nanoseconds(moments: NDArray[Any], column: Column) -> Times:
    """(N,) ns of datetime64 of any unit, between 1900 and 2200."""
    seconds = moments.astype("datetime64[s]").astype(np.int64)
    column.refuse((seconds < _EARLIEST) | (seconds > _LATEST), _FAR)
    return moments.astype("datetime64[ns]").astype(np.int64)
