"""Series in which nothing is wrong, by kind: on each of them a user must get as many events as were asked for.

The kinds are the textbook ones, and those of ``shapes`` that are typical of markets and servers. If a series changes
once and permanently, the change is labelled, because reporting it is right. NumPy only.
"""

from __future__ import annotations

import numpy as np

from apps.finance.datasets.synth.noise import autoregressive, daily
from apps.finance.datasets.synth.shapes import SHAPES, Shape
from apps.finance.types import DAY_NS, MINUTE_NS, Floats, LabelledSeries, Series, Times, Window

_FIRST_NS = 1_578_268_800 * 10**9
"""The start of the series: a Monday."""
_OPENS, _SESSION, _WORKDAYS = 570, 390, 5
"""A session from 9:30 to 16:00, in minutes, on five days of seven."""
_CHANGE_ROWS = 100
"""An event that begins within this many rows after a change is about the change."""


def _noise(generator: np.random.Generator, times_ns: Times) -> Floats:
    return generator.standard_normal(len(times_ns))


def _daily_sine(generator: np.random.Generator, times_ns: Times) -> Floats:
    """A daily sine."""
    sine: Floats = np.sin(2 * np.pi * ((times_ns % DAY_NS) / DAY_NS - generator.uniform()))
    return sine


def _opening_hours(generator: np.random.Generator, times_ns: Times) -> Floats:
    phase = ((times_ns % DAY_NS) / DAY_NS - generator.uniform()) % 1
    return np.where(phase < generator.uniform(0.3, 0.7), 1.0, 0.0)


def _orders(generator: np.random.Generator, times_ns: Times) -> Floats:
    return generator.poisson(5 * (0.2 + daily(generator, times_ns))).astype(np.float64)


def _sparse_orders(generator: np.random.Generator, times_ns: Times) -> Floats:
    length = len(times_ns)
    return np.where(generator.uniform(size=length) < 0.1, 1.0 + generator.poisson(4, length), 0.0)


def _trend(generator: np.random.Generator, times_ns: Times) -> Floats:
    slope = 10 ** generator.uniform(-4, -2) * float(generator.choice([-1, 1]))
    return slope * np.arange(len(times_ns)) + generator.standard_normal(len(times_ns))


def _changing_levels(generator: np.random.Generator, times_ns: Times) -> Floats:
    """A level that changes every 1,000 rows on average, as a server's does; such changes are normal here."""
    level_index = np.cumsum(generator.uniform(size=len(times_ns)) < 1e-3)
    return 4 * generator.standard_normal(int(level_index[-1]) + 1)[level_index] + generator.standard_normal(
        len(times_ns)
    )


def _step_at_half(times_ns: Times) -> Floats:
    """(N,) 0 in the first half and 1 in the second."""
    return (np.arange(len(times_ns)) >= len(times_ns) // 2).astype(np.float64)


ORDINARY: dict[str, Shape] = {
    "white noise": _noise,
    "autocorrelated (AR 0.9)": lambda generator, times_ns: autoregressive(generator, len(times_ns), 0.9),
    "random walk": lambda generator, times_ns: 1000 + np.cumsum(_noise(generator, times_ns)),
    "daily sine with noise": lambda generator, times_ns: (
        _daily_sine(generator, times_ns) + 0.2 * _noise(generator, times_ns)
    ),
    "daily sine, no noise": _daily_sine,
    "daily square wave, no noise": _opening_hours,
    "heavy tails (Student's t, 3)": lambda generator, times_ns: generator.standard_t(3, len(times_ns)),
    "counts by the time of day": _orders,
    "counts, nine of ten zero": _sparse_orders,
    "trend with noise": _trend,
    "levels that change": _changing_levels,
    "one shift by 20 deviations": lambda generator, times_ns: (
        20 * _step_at_half(times_ns) + _noise(generator, times_ns)
    ),
    "noise that triples once": lambda generator, times_ns: (
        (1 + 2 * _step_at_half(times_ns)) * _noise(generator, times_ns)
    ),
    "minute bars in sessions": SHAPES["minute_bars"],
    "daily closes": SHAPES["daily_close"],
    "server load": SHAPES["server"],
    "bursts": SHAPES["bursts"],
}
"""By kind: functions from a generator and times (N,) to values (N,) without faults."""
_CHANGES_ONCE = ("one shift by 20 deviations", "noise that triples once")


def ordinary(generator: np.random.Generator, kind: str, *, length: int) -> LabelledSeries:
    """A series of a kind of ``ORDINARY``, in 5-minute rows except for minute bars and daily closes."""
    times, interval_ns = _times(kind, length)
    values = ORDINARY[kind](generator, times)
    series = Series(name=kind, times_ns=times, values={"value": values}, column="value", interval_ns=interval_ns)
    if kind not in _CHANGES_ONCE:
        return LabelledSeries(series=series, windows=())
    first = length // 2
    end_ns = int(times[min(first + _CHANGE_ROWS, length) - 1])
    return LabelledSeries(series=series, windows=(Window(start_ns=int(times[first]), end_ns=end_ns, kind="shift"),))


def _times(kind: str, length: int) -> tuple[Times, int]:
    """(N,) the times of the rows, and the interval between them."""
    rows = np.arange(length, dtype=np.int64)
    if kind == "daily closes":
        return _FIRST_NS + (rows + rows // _WORKDAYS * (7 - _WORKDAYS)) * DAY_NS, DAY_NS
    if kind == "minute bars in sessions":
        session, minute = rows // _SESSION, rows % _SESSION
        day = session + session // _WORKDAYS * (7 - _WORKDAYS)
        return _FIRST_NS + day * DAY_NS + (_OPENS + minute) * MINUTE_NS, MINUTE_NS
    return _FIRST_NS + rows * 5 * MINUTE_NS, 5 * MINUTE_NS
