"""Normal behaviour of more kinds of source: mentions, servers, ad prices, temperatures, minute bars, daily closes.

They include behaviour that looks unusual but is normal for the source: a burst of mentions that decays, a server that
changes its level, a market that opens with a gap. NumPy only; see ``shapes`` for the arguments.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from apps.finance.datasets.synth.noise import autoregressive, daily, volatility
from apps.finance.types import DAY_NS, Floats, Times


def mentions(generator: np.random.Generator, times_ns: Times) -> Floats:
    """Mentions of a name: overdispersed counts around a daily rate, and decaying bursts of Pareto-distributed size."""
    length = len(times_ns)
    rate = 10 ** generator.uniform(0.3, 1.8) * (0.2 + daily(generator, times_ns))
    rate = rate * np.exp(0.2 * autoregressive(generator, length, 0.98))
    starts = generator.uniform(size=length) < 10 ** generator.uniform(-3.3, -2.3)
    kicks = np.where(starts, rate.mean() * np.minimum(generator.pareto(1.5, length) + 0.5, 8), 0.0)
    rate = rate + _sum_of_decaying(kicks, generator.uniform(0.5, 0.93))
    dispersion = generator.uniform(1.0, 6.0)
    return generator.poisson(rate * generator.gamma(dispersion, 1 / dispersion, length)).astype(np.float64)


def server(generator: np.random.Generator, times_ns: Times) -> Floats:
    """A server's load: levels that last hours to days, noise proportional to the level, short peaks, few digits."""
    length = len(times_ns)
    number = int(generator.poisson(generator.choice([0.0, 1.0, 4.0])))
    changes = np.sort(generator.integers(0, length, number))
    levels = 10 ** generator.uniform(-1, 1.6) * generator.lognormal(0, 0.35, number + 1)
    level = levels[np.searchsorted(changes, np.arange(length), side="right")]
    noise = (
        10 ** generator.uniform(-2, -0.4) * level * autoregressive(generator, length, generator.choice([0, 0.3, 0.9]))
    )
    values = level + noise
    if generator.uniform() < 0.5:
        values = values * (1 + generator.uniform(0.1, 1.5) * daily(generator, times_ns))
    peaks = generator.uniform(size=length) < 10 ** generator.uniform(-4, -1.5)
    height = level * generator.uniform(0.5, 6) * generator.lognormal(0, 0.4, length)
    values = values + _sum_of_decaying(np.where(peaks, height, 0.0), generator.choice([0.0, 0.4, 0.8]))
    return np.maximum(np.round(values, int(generator.integers(1, 4))), 0)


def ad_price(generator: np.random.Generator, times_ns: Times) -> Floats:
    """The cost of a click: strong multiplicative noise around a slowly changing level with a weak daily pattern."""
    length = len(times_ns)
    level = np.exp(0.3 * autoregressive(generator, length, 0.99)) * 10 ** generator.uniform(-1.5, 0.5)
    noise = generator.lognormal(0, generator.uniform(0.1, 0.4), length)
    heavy = np.where(generator.uniform(size=length) < 0.005, generator.uniform(1.3, 2.5, length), 1.0)
    values: Floats = level * noise * heavy * (1 + generator.uniform(0, 0.6) * daily(generator, times_ns))
    return values


def temperature(generator: np.random.Generator, times_ns: Times) -> Floats:
    """A temperature: a level, weather that wanders over days, a daily pattern in half of the series, little noise."""
    length = len(times_ns)
    weather = autoregressive(generator, length, 1 - 10 ** generator.uniform(-3.3, -2)) * generator.uniform(1, 6)
    pattern = generator.choice([0.0, 1.0]) * generator.uniform(1, 6) * daily(generator, times_ns)
    noise = 10 ** generator.uniform(-1.5, 0) * autoregressive(generator, length, generator.uniform(0, 0.9))
    values: Floats = generator.uniform(10, 90) + weather + pattern + noise
    return values


def minute_bars(generator: np.random.Generator, times_ns: Times) -> Floats:
    """A price in a market with opening hours: larger returns at open and close, overnight gaps, prices in ticks."""
    length = len(times_ns)
    within = (times_ns % DAY_NS) / DAY_NS
    hours = 0.5 + 2 * np.abs(within - 0.5) ** generator.uniform(1, 2)
    shocks = generator.standard_t(generator.uniform(3.5, 8), length) * volatility(generator, length) * hours
    opens = np.diff(times_ns // DAY_NS, prepend=times_ns[0] // DAY_NS) > 0
    gaps = np.where(opens, generator.uniform(0, 6) * generator.standard_normal(length), 0.0)
    price = 10 ** generator.uniform(0, 4)
    values = price * np.exp(10 ** generator.uniform(-4, -3) * np.cumsum(shocks + gaps))
    tick = price * 10 ** generator.uniform(-5, -3.7)
    ticks: Floats = np.round(values / tick) * tick
    return ticks


def daily_close(generator: np.random.Generator, times_ns: Times) -> Floats:
    """Closes of a share: drifting, heavy-tailed returns with clustered volatility, so that ordinary jumps occur."""
    length = len(times_ns)
    shocks = generator.standard_t(generator.uniform(3.5, 7), length)
    shocks = shocks / max(float(shocks.std()), 1e-9) * volatility(generator, length)
    slow_volatility = np.exp(-0.4 * autoregressive(generator, length, 0.99))
    returns = generator.uniform(0.006, 0.03) * shocks * slow_volatility + generator.normal(3e-4, 3e-4)
    values: Floats = 10 ** generator.uniform(0.3, 3) * np.exp(np.cumsum(returns))
    return values


def _sum_of_decaying(kicks: Floats, decay: float) -> Floats:
    """(N,) the sum of ``kicks``, each of which decays by the factor ``decay`` from row to row."""
    values, last = np.empty(len(kicks)), 0.0
    for index, kick in enumerate(kicks.tolist()):
        last = decay * last + kick
        values[index] = last
    return values


SOURCES: dict[str, Callable[[np.random.Generator, Times], Floats]] = {
    "mentions": mentions,
    "server": server,
    "ad_price": ad_price,
    "temperature": temperature,
    "minute_bars": minute_bars,
    "daily_close": daily_close,
}
