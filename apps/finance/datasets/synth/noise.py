"""Building blocks of synthetic series: an autoregressive process, changing volatility, a daily pattern. NumPy only."""

from __future__ import annotations

import numpy as np

from apps.finance.types import DAY_NS, Floats, Times


def autoregressive(generator: np.random.Generator, length: int, memory: float) -> Floats:
    """(N,) an AR(1) process of unit variance with coefficient ``memory`` in [0, 1)."""
    noise = generator.standard_normal(length) * np.sqrt(1 - memory**2)
    noise[0] = generator.standard_normal()
    values, last = np.empty(length), 0.0
    for index, step in enumerate(noise.tolist()):
        last = memory * last + step
        values[index] = last
    return values


def volatility(generator: np.random.Generator, length: int) -> Floats:
    """(N,) the standard deviations of a GARCH(1,1) process (Bollerslev, 1986) of unit mean variance."""
    alpha = generator.uniform(0.03, 0.15)
    beta = generator.uniform(0.75, 0.99 - alpha)
    omega = 1 - alpha - beta
    squares = generator.standard_normal(length) ** 2
    variances, last = np.empty(length), 1.0
    for index, square in enumerate(squares.tolist()):
        variances[index] = last
        last = omega + (alpha * square + beta) * last
    return np.sqrt(variances)


def daily(generator: np.random.Generator, times_ns: Times) -> Floats:
    """(N,) a smooth daily pattern in [0, 1], sometimes with quieter weekends."""
    phase = 2 * np.pi * ((times_ns % DAY_NS) / DAY_NS - generator.uniform())
    pattern = np.zeros(len(times_ns))
    for harmonic in range(1, 4):
        amplitude = generator.normal() / harmonic
        pattern += amplitude * np.cos(harmonic * phase + generator.uniform(0, 2 * np.pi))
    low, high = pattern.min(), pattern.max()
    pattern = (pattern - low) / max(high - low, 1e-9)
    if generator.uniform() < 0.5:
        pattern *= _weekend_factor(times_ns, generator.uniform(0.3, 0.9))
    daily_pattern: Floats = pattern
    return daily_pattern


def _weekend_factor(times_ns: Times, weekend: float) -> Floats:
    day = (times_ns // DAY_NS + 3) % 7  # 1970-01-01 was a Thursday; 0 is Monday
    return np.where(day >= 5, weekend, 1.0)
