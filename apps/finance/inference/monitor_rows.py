"""The rows that a monitor receives, in any notation, as arrays of the series' columns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from apps.finance.adapters.numbers import MAX_VALUE
from apps.finance.datasets.columns import boolean_numbers
from apps.finance.types import DAY_NS, Floats, Series, Times, Words
from shared.errors import InvalidInputError
from shared.utc_time import iso_utc

_MIN_TIME_NS = 10**16
"""Smaller numbers are probably not nanoseconds."""
_MAX_STEP_NS = 366 * DAY_NS
"""A row this long after the one before has a wrong time: if it were accepted, all rows until then would be ignored."""
_DAY_OR_MONTH_FIRST = re.compile(r"\s*\d{1,2}[./-]\d{1,2}[./-]\d")
"""A date as in 05.01.2026: read by itself, it may be in January or in May."""


def read_rows(series: Series, times: Any, values: Any) -> tuple[Times, dict[str, Floats | Words]]:
    """The times (M,) of those rows that come after ``series``, and its columns (M,) there.

    ``times`` and ``values`` are those of ``Monitor.update``. Raises InvalidInputError for unusable rows.
    """
    times_ns = _to_nanoseconds(times)
    needed = [*series.values, *series.words]
    is_table = isinstance(values, Mapping) or hasattr(values, "columns")
    is_mapping = is_table or (hasattr(values, "keys") and series.column in values)  # a row of a DataFrame
    values_by_name = values if is_mapping else {series.column: values}
    if missing := [name for name in needed if name not in values_by_name]:
        raise InvalidInputError(
            f"{series.name} has the columns {', '.join(needed)}, of which {', '.join(missing)} is missing; "
            "pass a mapping or a DataFrame with all of them, with NaN for missing values"
        )
    columns: dict[str, Floats | Words] = {name: _numbers(values_by_name[name], name) for name in series.values}
    columns |= {name: _words(values_by_name[name], name) for name in series.words}
    for name, cells in columns.items():
        if cells.shape != times_ns.shape:
            raise InvalidInputError(
                f"there are {times_ns.size} times but {cells.size} values of {name}; pass one value for each time"
            )
    if (np.diff(times_ns) <= 0).any():
        raise InvalidInputError(
            f"the times of the rows of {series.name} must increase; sort the rows and keep one row for each time"
        )
    new = times_ns > series.times_ns[-1]
    steps = np.diff(times_ns[new], prepend=series.times_ns[-1])
    if (too_late := np.flatnonzero(steps > _MAX_STEP_NS)).size:
        raise InvalidInputError(
            f"the row at {iso_utc(times_ns[new][too_late[0]] / 1e9)} of {series.name} is "
            f"{steps[too_late[0]] / DAY_NS:,.0f} days after the one before; correct its time or leave it "
            "out, or, if the series did pause that long, start a monitor from the history"
        )
    return times_ns[new], {name: cells[new] for name, cells in columns.items()}


def _numbers(values: Any, name: str) -> Floats:
    """(M,) a column of numbers; booleans, also as texts, are 1 and 0; what is empty or not finite is missing."""
    cells = np.atleast_1d(values)
    if cells.dtype.kind in "OU" and cells.ndim == 1:  # may hold pandas.NA, as rows of nullable columns do
        cells = np.array([np.nan if _word(cell) == "" else cell for cell in cells.tolist()], object)
    try:
        numbers = np.asarray(cells, np.float64)
    except (ValueError, TypeError) as error:
        booleans = boolean_numbers(_words(cells, name)) if cells.ndim == 1 else None
        if booleans is None:
            raise InvalidInputError(
                f"the values of {name} are not numbers: {error}; pass numbers, NaN where missing"
            ) from error
        numbers = booleans
    if (too_large := np.flatnonzero(np.isfinite(numbers) & (np.abs(numbers) > MAX_VALUE))).size:
        raise InvalidInputError(
            f"the values of {name} have {numbers.ravel()[too_large[0]]:g}, which is too large to be a value; correct "
            "it, or send NaN if it is missing"
        )
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _words(values: Any, name: str) -> Words:
    """(M,) a column of words as a file has them: stripped, empty where missing, numbers with up to 15 digits."""
    cells = np.atleast_1d(np.asarray(values, object))
    if cells.ndim != 1:
        raise InvalidInputError(f"the values of {name} are not a column; pass one text for each time")
    return np.array([_word(cell) for cell in cells.tolist()] or [], object)


def _word(cell: Any) -> str:
    """A cell as the text that a file would hold."""
    if isinstance(cell, str):
        return cell.strip()
    if cell is None or str(cell) in ("nan", "<NA>", "NaT"):
        return ""
    is_number = isinstance(cell, int | float | np.number) and not isinstance(cell, bool)
    return f"{cell:.15g}" if is_number else str(cell)


def _to_nanoseconds(times: Any) -> Times:
    """(M,) times in UTC nanoseconds."""
    array = np.atleast_1d(times)
    if array.dtype.kind == "f" and len(array):
        raise InvalidInputError(
            f"the time {array[-1]} is a floating-point number, which is not exact; pass integers or pandas Timestamps"
        )
    if array.dtype.kind not in "iuf":
        import pandas as pd

        for time in array.tolist():
            if isinstance(time, str) and _DAY_OR_MONTH_FIRST.match(time):
                raise InvalidInputError(
                    f"the time {time!r} does not say which number is the day; write it as 2026-01-05T10:00:00Z, or "
                    "pass a pandas Timestamp"
                )
        try:
            parsed = pd.DatetimeIndex(pd.to_datetime(list(array), utc=True))
        except (ValueError, TypeError, OverflowError) as error:
            raise InvalidInputError(
                f"the times cannot be read: {error}; write them as 2026-01-05T10:00:00Z, or pass pandas Timestamps"
            ) from error
        if parsed.isna().any():
            raise InvalidInputError("a row has no time; leave it out")
        return np.asarray(parsed.as_unit("ns").asi8, np.int64)
    if len(array) and int(np.abs(array).max()) < _MIN_TIME_NS:
        raise InvalidInputError(
            f"the time {array[-1]} in nanoseconds is in 1970; multiply seconds by 10**9, or pass pandas Timestamps"
        )
    return array.astype(np.int64)
