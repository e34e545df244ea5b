"""Synthetic markets and metrics with exactly known anomalies, drawn from a random generator. NumPy only.

The same generator gives the same series on every machine. Everything made from them is labelled synthetic.
"""

from __future__ import annotations

import itertools

import numpy as np

from apps.finance.datasets.synth.faults import FAULTS, local_scale
from apps.finance.datasets.synth.noise import daily, volatility
from apps.finance.datasets.synth.shapes import SHAPES
from apps.finance.types import DAY_NS, HOUR_NS, MINUTE_NS, Floats, LabelledSeries, Series, Times, Window

INTERVALS_NS = (MINUTE_NS, 5 * MINUTE_NS, 5 * MINUTE_NS, 5 * MINUTE_NS, 15 * MINUTE_NS, HOUR_NS, DAY_NS)
_WEIGHTS = {
    "price": 2.0,
    "volume": 1.0,
    "counts": 3.0,
    "utilisation": 3.0,
    "bursts": 1.5,
    "plateau": 1.0,
    "sensor": 2.0,
    "noise": 0.7,
    "constant": 0.3,
    "wandering": 1.5,
    "mentions": 2.5,
    "server": 3.0,
    "ad_price": 1.5,
    "temperature": 1.0,
    "minute_bars": 1.5,
    "daily_close": 1.0,
}
_PRICES = ("price", "minute_bars", "daily_close")
_WITHOUT_RHYTHM = (*_PRICES, "noise", "wandering", "ad_price", "temperature")
_INTERVALS = {"daily_close": (DAY_NS,), "minute_bars": (MINUTE_NS, 5 * MINUTE_NS)}
"""The intervals between rows of kinds that do not occur at all intervals."""
_NORMAL_SHARE = 0.2
"""The first fifth of a series has no anomalies, like a benchmark's probationary period."""


def timestamps(generator: np.random.Generator, length: int, interval_ns: int) -> Times:
    """(N,) times from a random day between 2010 and 2030; one series in four skips rows, as sensors do."""
    start = int(generator.integers(14_610, 21_900)) * DAY_NS + int(generator.integers(24)) * HOUR_NS
    steps = np.ones(length, np.int64)
    if generator.uniform() < 0.25:
        steps += (generator.uniform(size=length) < 0.1) * generator.integers(1, 8, length)
        steps += (generator.uniform(size=length) < 0.002) * generator.integers(20, 200, length)
    return start + np.cumsum(steps) * interval_ns


def series(
    generator: np.random.Generator, *, length: int, shape: str | None = None, anomalies: float = 1.5
) -> LabelledSeries:
    """A synthetic series of ``length`` rows.

    ``shape`` is a key of ``SHAPES``, drawn at random if None. ``anomalies`` is the expected number of anomalies.
    """
    names = list(SHAPES)
    weights = np.array([_WEIGHTS[name] for name in names])
    random_shape = str(generator.choice(names, p=weights / weights.sum()))
    shape = random_shape if shape is None else shape
    interval = int(generator.choice(_INTERVALS.get(shape, INTERVALS_NS)))
    times = timestamps(generator, length, interval)
    values = SHAPES[shape](generator, times)
    # In a price a single odd row is a bad print, which users want to see.
    if shape not in ("constant", *_PRICES) and generator.uniform() < 0.6:
        values = ordinary_outliers(generator, values)
    values, windows = _inject_faults(generator, values, times, shape, int(generator.poisson(anomalies)))
    if generator.uniform() < 0.5:
        values = np.round(values, int(generator.integers(0, 4)))
    item = Series(
        name=f"synthetic {shape}", times_ns=times, values={"value": values}, column="value", interval_ns=interval
    )
    return LabelledSeries(series=item, windows=windows)


def ordinary_outliers(generator: np.random.Generator, values: Floats) -> Floats:
    """Adds the single odd rows of Pareto-distributed size that real series are full of and nobody calls anomalies."""
    hits = generator.uniform(size=len(values)) < 10 ** generator.uniform(-3.3, -2.1)
    scale = local_scale(values, len(values), len(values))
    sizes = (2 + 3 * generator.pareto(2.5, len(values))) * np.where(generator.uniform(size=len(values)) < 0.75, 1, -1)
    return values + np.where(hits, scale * np.minimum(sizes, 60), 0.0)


def _inject_faults(
    generator: np.random.Generator, values: Floats, times: Times, shape: str, number: int
) -> tuple[Floats, tuple[Window, ...]]:
    length = len(values)
    max_span = max(8, length // 20)
    kinds = [
        name for name in FAULTS if shape != "constant" or name in ("spike", "level_shift", "volatility_burst", "tick")
    ]
    if shape in _WITHOUT_RHYTHM:
        kinds.remove("season_break")
    windows: list[Window] = []
    # One slot for each anomaly, so that no two overlap and normal rows follow every window.
    edges = np.linspace(_NORMAL_SHARE * length, length - 1, number + 1).astype(int)
    for first, last in itertools.pairwise(edges):
        span = int(generator.integers(6, max_span))
        if last - first < span + 2:
            continue
        start = int(generator.integers(first + 1, last - span))
        kind = str(generator.choice(kinds))
        size = generator.uniform(5, 20)
        values, end = FAULTS[kind](generator, values, start, span, size)
        windows.append(Window(start_ns=int(times[start]), end_ns=int(times[end]), kind=kind))
    return values, tuple(windows)


def market(generator: np.random.Generator, *, length: int = 4000) -> LabelledSeries:
    """5-minute bars (open, high, low, close, volume) of a market with a pump and dump, a jump, a volatility burst and a
    halt."""
    start = int(generator.integers(18_262, 20_000)) * DAY_NS
    times = start + np.arange(length, dtype=np.int64) * 5 * MINUTE_NS
    returns = 0.001 * generator.standard_normal(length) * volatility(generator, length)
    log_close = np.cumsum(returns)
    log_volume = 8 + 1.2 * daily(generator, times) + 0.3 * generator.standard_normal(length)
    windows: list[Window] = []

    def mark(kind: str, first: int, rows: int) -> slice:
        windows.append(Window(start_ns=int(times[first]), end_ns=int(times[first + rows - 1]), kind=kind))
        return slice(first, first + rows)

    first_rows = (np.array([0.3, 0.5, 0.7, 0.88]) * length).astype(int) + generator.integers(0, length // 20, 4)
    rows = mark("pump_and_dump", int(first_rows[0]), 36)
    log_close[rows] += 0.12 * np.concatenate([np.linspace(0, 1, 24) ** 2, np.exp(-np.arange(12) / 2)])
    log_volume[rows] += 2.0
    rows = mark("jump", int(first_rows[1]), 12)
    log_close[rows.start :] -= 0.04
    log_volume[rows] += 1.5
    rows = mark("volatility_burst", int(first_rows[2]), 48)
    log_close[rows] += 0.008 * generator.standard_normal(48)
    log_volume[rows] += 1.0
    rows = mark("halt", int(first_rows[3]), 40)
    log_close[rows] = log_close[rows.start - 1]
    log_volume[rows] = -np.inf
    close = 100 * np.exp(log_close)
    open_ = np.concatenate([close[:1], close[:-1]])
    wick = 0.0005 * close * np.abs(generator.standard_normal((2, length)))
    wick[:, rows] = 0
    values = {
        "open": open_,
        "high": np.maximum(open_, close) + wick[0],
        "low": np.minimum(open_, close) - wick[1],
        "close": close,
        "volume": np.round(np.exp(log_volume)),
    }
    series = Series(name="synthetic market", times_ns=times, values=values, column="close", interval_ns=5 * MINUTE_NS)
    return LabelledSeries(series=series, windows=tuple(windows))
