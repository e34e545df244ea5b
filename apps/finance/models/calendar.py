"""Covariates computed from the time of a row alone, under the names used in pytorch-forecasting's tutorials.

Networks trained here take the sine and cosine ones, which have no values that training has not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from apps.finance.types import DAY_NS, HOUR_NS, MINUTE_NS, LibraryTFT, Times


def _months(times_ns: Times) -> np.ndarray:
    return times_ns.astype("datetime64[ns]").astype("datetime64[M]").astype(np.int64)


def _day_of_week(times_ns: Times) -> np.ndarray:
    return (times_ns // DAY_NS + 3) % 7  # 1970-01-01 was a Thursday; Monday is 0, as in pandas


def _angle(times_ns: Times, period_ns: int) -> np.ndarray:
    return 2 * np.pi * (times_ns % period_ns) / period_ns


def _day_of_month(times_ns: Times) -> np.ndarray:
    days = times_ns.astype("datetime64[ns]").astype("datetime64[D]")
    day: np.ndarray = (days - days.astype("datetime64[M]")).astype(np.int64) + 1
    return day


CALENDAR: dict[str, Callable[[Times], np.ndarray]] = {
    "minute": lambda times: times % HOUR_NS // MINUTE_NS,
    "hour": lambda times: times % DAY_NS // HOUR_NS,
    "hour_of_day": lambda times: times % DAY_NS // HOUR_NS,
    "day": _day_of_month,
    "day_of_month": _day_of_month,
    "weekday": _day_of_week,
    "dayofweek": _day_of_week,
    "day_of_week": _day_of_week,
    "month": lambda times: _months(times) % 12 + 1,
    "quarter": lambda times: _months(times) % 12 // 3 + 1,
    "year": lambda times: _months(times) // 12 + 1970,
    "time_of_day_sin": lambda times: np.sin(_angle(times, DAY_NS)),
    "time_of_day_cos": lambda times: np.cos(_angle(times, DAY_NS)),
    "day_of_week_sin": lambda times: np.sin(2 * np.pi * _day_of_week(times) / 7),
    "day_of_week_cos": lambda times: np.cos(2 * np.pi * _day_of_week(times) / 7),
}


def is_of_calendar(name: str, codes: Mapping[str, int]) -> bool:
    """Whether a category is computed from the times: it has a name of the calendar, and its words are whole numbers."""
    return name in CALENDAR and all(word.isdigit() or word == "nan" for word in codes)


def computed_reals(target: str) -> set[str]:
    """The target, and the real covariates that the library computes from the rows of a window."""
    return {target, f"{target}_center", f"{target}_scale", "relative_time_idx", "encoder_length"}


def columns_taken(library: LibraryTFT) -> tuple[str, ...]:
    """The columns of a table that a network, trained here or elsewhere, takes in addition to the value."""
    if library.trained_here:
        return library.covariates
    computed = computed_reals(library.target) | ({library.time_idx} - library.columns.keys())
    reals = [name for name in library.network["x_reals"] if name not in computed | CALENDAR.keys()]
    categories = [name for name in library.network.get("x_categoricals") or [] if name != library.group]
    return (*reals, *(name for name in categories if not is_of_calendar(name, library.categories.get(name, {}))))


def has_explaining_columns(library: LibraryTFT) -> bool:
    """Whether a network takes columns that may explain the value, beside the names of series and the time index."""
    return bool(set(columns_taken(library)) - {library.time_idx, *library.group.split("+")})
