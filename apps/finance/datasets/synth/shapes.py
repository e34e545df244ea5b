"""Normal behaviour of synthetic series: prices, volumes, counts, utilisation, sensors. NumPy only.

Every function takes a generator and ``times_ns`` (N,) and returns (N,) values without anomalies, in arbitrary units.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from apps.finance.datasets.synth.noise import autoregressive, daily, volatility
from apps.finance.datasets.synth.sources import SOURCES
from apps.finance.types import DAY_NS, WEEK_NS, Floats, Times

Shape = Callable[[np.random.Generator, Times], Floats]


def price(generator: np.random.Generator, times_ns: Times) -> Floats:
    """A price: returns with GARCH volatility and Student's t innovations, drifting by regime."""
    length = len(times_ns)
    freedom = generator.uniform(4, 10)
    shocks = generator.standard_t(freedom, length) * np.sqrt((freedom - 2) / freedom)
    deviation: float | Floats = 10 ** generator.uniform(-4, -2.3)
    if generator.uniform() < 0.5:
        deviation = deviation * (0.6 + 0.8 * daily(generator, times_ns))
    drift = _regimes(generator, length, 400) * 0.05
    returns = deviation * (shocks * volatility(generator, length) + drift)
    prices: Floats = 10 ** generator.uniform(0, 4) * np.exp(np.cumsum(returns))
    return prices


def volume(generator: np.random.Generator, times_ns: Times) -> Floats:
    """A traded volume: log-normal around a slowly wandering level with a daily pattern."""
    length = len(times_ns)
    level = autoregressive(generator, length, 0.97) * generator.uniform(0.1, 0.5)
    pattern = daily(generator, times_ns) * generator.uniform(0, 2)
    noise = generator.standard_normal(length) * generator.uniform(0.1, 0.6)
    return 10 ** generator.uniform(1, 6) * np.exp(level + pattern + noise)


def counts(generator: np.random.Generator, times_ns: Times) -> Floats:
    """Counts per interval (mentions, orders): negative binomial around a daily and weekly rate."""
    length = len(times_ns)
    rate = 10 ** generator.uniform(0.3, 2.2) * (0.15 + daily(generator, times_ns))
    rate = rate * np.exp(autoregressive(generator, length, 0.9) * generator.uniform(0.05, 0.3))
    dispersion = generator.uniform(1.5, 12)
    values = generator.poisson(rate * generator.gamma(dispersion, 1 / dispersion, length)).astype(np.float64)
    return _add_peaks(generator, values, rate * generator.uniform(2, 5), generator.uniform(0, 0.004))


def utilisation(generator: np.random.Generator, times_ns: Times) -> Floats:
    """A load between 0 and 100: a level, some autocorrelation, an optional daily pattern, short ordinary peaks."""
    length = len(times_ns)
    base = generator.uniform(0, 60)
    noise = 10 ** generator.uniform(-1.3, 0.9)
    values = base + noise * autoregressive(generator, length, generator.choice([0.0, 0.5, 0.9]))
    if generator.uniform() < 0.6:
        values += daily(generator, times_ns) * generator.uniform(1, 40)
    peaks = generator.uniform(2, 12) * noise * generator.uniform(0.5, 1.5, length)
    values = _add_peaks(generator, values, peaks, generator.choice([0.0, 0.002, 0.02]))
    if generator.uniform() < 0.3:
        values = _add_periodic_job(generator, values, noise * generator.uniform(4, 20))
    return np.clip(values, 0, 100)


def bursts(generator: np.random.Generator, times_ns: Times) -> Floats:
    """Almost nothing, with ordinary bursts of very different sizes (disk writes, network traffic)."""
    length = len(times_ns)
    floor = 10 ** generator.uniform(0, 3) * np.exp(0.2 * generator.standard_normal(length))
    if generator.uniform() < 0.3:
        floor = np.zeros(length)
    height = 10 ** generator.uniform(2, 5)
    values = _add_peaks(generator, floor, height * generator.lognormal(0, 0.5, length), generator.uniform(0.002, 0.1))
    return _add_periodic_job(generator, values, height) if generator.uniform() < 0.4 else values


def plateau(generator: np.random.Generator, times_ns: Times) -> Floats:
    """Two levels that alternate daily (opening hours), with or without noise."""
    phase = ((times_ns % DAY_NS) / DAY_NS - generator.uniform()) % 1
    low, high = generator.uniform(-50, 50), generator.uniform(20, 100)
    values = low + high * (phase < generator.uniform(0.3, 0.7))
    noise = generator.choice([0.0, 0.02, 0.08]) * high
    noisy: Floats = values + noise * generator.uniform(-1, 1, len(times_ns))
    return noisy


def sensor(generator: np.random.Generator, times_ns: Times) -> Floats:
    """A road sensor: two daily rush hours, strong noise, a floor at zero, occasionally a heavy tail."""
    length = len(times_ns)
    pattern = daily(generator, times_ns)
    noise = generator.uniform(0.05, 0.3) * generator.standard_normal(length)
    values = generator.uniform(0.2, 1) + pattern * generator.uniform(0.1, 1.0) + noise
    if generator.uniform() < 0.5:
        values = values * np.where(generator.uniform(size=length) < 0.02, generator.uniform(1.2, 3, length), 1)
    return np.maximum(values, 0) * 10 ** generator.uniform(0, 2.5)


def noise(generator: np.random.Generator, times_ns: Times) -> Floats:
    """White noise, uniform or normal, around a level."""
    length = len(times_ns)
    draw = generator.uniform(-1, 1, length) if generator.uniform() < 0.5 else generator.standard_normal(length)
    return generator.uniform(-50, 50) + draw * 10 ** generator.uniform(-1, 1.5)


def constant(generator: np.random.Generator, times_ns: Times) -> Floats:
    """A constant value."""
    return np.full(len(times_ns), np.round(generator.uniform(0, 100), 1))


def wandering(generator: np.random.Generator, times_ns: Times) -> Floats:
    """A level that drifts slowly and steps occasionally, with noise, as a quiet system's does over weeks."""
    length = len(times_ns)
    slow = np.cumsum(generator.standard_normal(length)) * 10 ** generator.uniform(-2.5, -1)
    pattern = np.sin(2 * np.pi * (times_ns % WEEK_NS) / WEEK_NS + generator.uniform(0, 6)) * generator.uniform(0, 1)
    return slow + pattern + generator.uniform(0.1, 0.6) * autoregressive(generator, length, generator.uniform(0, 0.8))


SHAPES: dict[str, Shape] = {
    **SOURCES,
    "price": price,
    "volume": volume,
    "counts": counts,
    "utilisation": utilisation,
    "bursts": bursts,
    "plateau": plateau,
    "sensor": sensor,
    "noise": noise,
    "constant": constant,
    "wandering": wandering,
}


def _regimes(generator: np.random.Generator, length: int, mean_rows: int) -> Floats:
    """(N,) standard normal levels that change at random rows, ``mean_rows`` apart on average."""
    changes = np.cumsum(generator.uniform(size=length) < 1 / mean_rows)
    return generator.standard_normal(int(changes[-1]) + 1)[changes]


def _add_peaks(generator: np.random.Generator, values: Floats, heights: Floats, rate: float) -> Floats:
    """Adds ordinary peaks of one to three rows at random rows."""
    hits = generator.uniform(size=len(values)) < rate
    if generator.uniform() < 0.5:
        hits[1:] |= hits[:-1] & (generator.uniform(size=len(values) - 1) < 0.5)
    return values + np.where(hits, heights, 0.0)


def _add_periodic_job(generator: np.random.Generator, values: Floats, height: float) -> Floats:
    """Adds a periodic job: every ``period`` rows, some rows are higher."""
    period, rows = int(generator.integers(12, 300)), int(generator.integers(1, 8))
    phase = (np.arange(len(values)) + generator.integers(period)) % period
    return values + np.where(phase < rows, height * generator.uniform(0.8, 1.2, len(values)), 0.0)
