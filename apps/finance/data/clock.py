"""Times as people write them, to UTC nanoseconds: ISO 8601, plain dates, epochs in s, ms, us or ns."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

import numpy as np

from apps.finance.types import Times
from shared.refusal import Refusal

if TYPE_CHECKING:
    import polars

NAMES = (
    *("timestamp", "time", "datetime", "date", "ts", "open_time", "opentime", "time_utc", "timestamp_utc", "unix"),
    *("open time", "date_time", "date time", "unixtime", "unix_timestamp", "period"),
    *("日期时间", "交易时间", "时间", "交易日期", "日期"),
)
"""What time columns are called, in lower case, the likeliest first."""

_ZONED = ("%Y-%m-%dT%H:%M:%S%.f%:z", "%Y-%m-%dT%H:%M:%S%.f%z", "%Y-%m-%dT%H:%M%:z")
_PLAIN = (
    *("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y%m%dT%H%M%S", "%Y%m%dT%H:%M:%S"),
    *("%d.%m.%YT%H:%M:%S%.f", "%d.%m.%YT%H:%M"),
)
_DATES = ("%Y-%m-%d", "%Y%m%d", "%d.%m.%Y", "%Y-%m")
_SLASHED = re.compile(r"^(\d{1,2})[/-](\d{1,2})[/-](\d{4})(.*)$")
_EARLIEST, _LATEST = -2_208_988_800, 7_258_118_400  # 1900 and 2200, in s
_NUMBER = re.compile(r"^[+-]?\d+([.]\d+)?([eE][+-]?\d+)?$")


def parse_times(column: polars.Series, place: str) -> Times:
    """(N,) UTC ns of a column of text, integers, floats, dates or datetimes; times without a zone are UTC.

    ``place`` names file and column in refusals. Refuses times that cannot be read, naming the line (the header is
    line 1), and dates whose day and month cannot be told apart.
    """
    import polars as pl

    kind = column.dtype
    if column.null_count():
        line = int(column.is_null().arg_max() or 0) + 2
        raise Refusal(f"{place} has no time in line {line}; fill it in or delete the row")
    if kind == pl.Date or isinstance(kind, pl.Datetime):
        dated = column.cast(pl.Datetime("us")) if kind == pl.Date else column
        _refuse_far(dated, column, place)
        return _nanoseconds(dated)
    if kind.is_numeric():
        return _epochs(column.to_numpy(), place)
    if kind != pl.String:
        raise Refusal(f"{place} holds {kind}, which is not a time; use ISO 8601 text, a date or seconds since 1970")
    return _parse_text(column.str.strip_chars().str.strip_chars('"'), place)


def _parse_text(text: polars.Series, place: str) -> Times:
    import polars as pl

    first = str(text[0])
    compact = len(first) == 8 and first[:2] in ("19", "20") and first.isdigit()
    if _NUMBER.match(first) and not compact:
        numbers = text.cast(pl.Float64, strict=False)
        _refuse_first(numbers.is_null(), text, place, "a number of seconds, ms, us or ns since 1970")
        whole = text.cast(pl.Int64, strict=False)
        return _epochs((numbers if whole.null_count() else whole).to_numpy(), place)
    if _SLASHED.match(first):
        text = _order_slashed(text, place)
    unified = text.str.replace(r"(\d)[ _](\d)", "${1}T${2}").str.replace_all(r"^(\d{4})/(\d{1,2})/", "${1}-${2}-")
    unified = unified.str.replace(r" ?(UTC|GMT|Z|z)$", "+00:00").str.replace(r"(:\d\d(?:\.\d+)?[+-]\d\d)$", "${1}:00")
    best: polars.Series | None = None
    for formats, zoned in ((_ZONED, True), (_PLAIN, False), (_DATES, False)):
        for form in formats:
            try:
                # Nanoseconds reach from 1677 to 2262 and wrap around silently, so the range is read in microseconds.
                parsed = _read_as(unified, form, formats is _DATES, "us")
                if parsed.null_count() < len(parsed):
                    _refuse_far(parsed, text, place)
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
    _refuse_first(best.is_null(), text, place, "a time; write it as 2024-01-31 09:30:00 (UTC), or with its zone")
    raise AssertionError("unreachable")


def _read_as(text: polars.Series, form: str, plain_date: bool, unit: Literal["us", "ns"]) -> polars.Series:
    import polars as pl

    if plain_date:
        return text.str.to_date(form, strict=False).cast(pl.Datetime(unit))
    return text.str.to_datetime(form, strict=False, time_unit=unit)


def _nanoseconds(dated: polars.Series) -> Times:
    return dated.dt.cast_time_unit("ns").to_physical().to_numpy().astype(np.int64)


def _refuse_far(dated: polars.Series, written: polars.Series, place: str) -> None:
    """Refuses a time before 1900 or after 2200, with its line and as it is written; no time at all is not far."""
    seconds = dated.dt.epoch("s")
    far = ((seconds < _EARLIEST) | (seconds > _LATEST)).fill_null(False)
    if far.any():
        row = int(far.arg_max() or 0)
        raise Refusal(
            f"{place}, line {row + 2}: {str(written[row])!r} is not between 1900 and 2200; "
            "correct the date, or delete the row"
        )


def _order_slashed(text: polars.Series, place: str) -> polars.Series:
    """Puts 31/01/2024 and 01/31/2024 into ISO order, if one of the two orders is the only possible one."""
    parts = [_SLASHED.match(str(value)) for value in text]
    known = [part for part in parts if part]
    day_first = any(int(part[1]) > 12 for part in known)
    month_first = any(int(part[2]) > 12 for part in known)
    if day_first == month_first:
        fault = "puts the day first in some rows and the month first in others" if day_first else "is ambiguous"
        raise Refusal(f"{place}: {text[0]!r} {fault}; write dates as 2024-01-31")
    day, month = (1, 2) if day_first else (2, 1)
    import polars as pl

    ordered = [
        f"{part[3]}-{int(part[month]):02d}-{int(part[day]):02d}{part[4]}" if part else str(value)
        for part, value in zip(parts, text, strict=True)
    ]
    return pl.Series(text.name, ordered)


def _epochs(numbers: np.ndarray, place: str) -> Times:
    """UTC ns from numbers since 1970, whose unit follows from their size."""
    if not np.isfinite(numbers).all():
        line = int(np.argmin(np.isfinite(numbers))) + 2
        raise Refusal(f"{place} has no time in line {line}; fill it in or delete the row")
    largest = float(np.abs(numbers).max())
    unit_ns = 10**9 if largest < 1e11 else 10**6 if largest < 1e14 else 10**3 if largest < 1e17 else 1
    seconds = numbers.astype(np.float64) * (unit_ns / 1e9)
    if seconds.min() < _EARLIEST or seconds.max() > _LATEST:
        raise Refusal(f"{place} holds numbers that are no times between 1900 and 2200; use seconds since 1970")
    whole: Times = np.floor(numbers).astype(np.int64) * unit_ns
    if not np.issubdtype(numbers.dtype, np.integer):
        whole += np.round((numbers - np.floor(numbers)) * unit_ns).astype(np.int64)
    return whole


def _refuse_first(bad: polars.Series, text: polars.Series, place: str, wanted: str) -> None:
    if bad.any():
        row = int(bad.arg_max() or 0)
        raise Refusal(f"{place}, line {row + 2}: {text[row]!r} is not {wanted}")
