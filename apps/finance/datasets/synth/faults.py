"""Faults that are injected into synthetic series, each with the rows that it spans. NumPy only.

A fault changes values (N,) in the rows ``start`` to ``start + span`` (or from ``start`` on) and returns the new values
and its last labelled row. ``size`` is in units of the local scale: the typical deviation of the series from its local
median.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from apps.finance.types import Floats

Fault = Callable[[np.random.Generator, Floats, int, int, float], tuple[Floats, int]]


def local_scale(values: Floats, start: int, window_rows: int = 400) -> float:
    """A robust scale of the rows before ``start``: 1.4826 MAD, but at least a tenth of their standard deviation."""
    earlier = values[max(0, start - window_rows) : start]
    spread = 1.4826 * float(np.median(np.abs(earlier - np.median(earlier))))
    floor = 0.01 * float(np.abs(earlier).mean()) + 1e-9
    return max(spread, 0.1 * float(earlier.std()), floor)


def _random_sign(generator: np.random.Generator) -> float:
    return 1.0 if generator.uniform() < 0.65 else -1.0


def spike(generator: np.random.Generator, values: Floats, start: int, span: int, size: float) -> tuple[Floats, int]:
    """One to four rows with extreme values."""
    rows = int(generator.integers(1, 5))
    values = values.copy()
    values[start : start + rows] += _random_sign(generator) * size * local_scale(values, start)
    return values, start + rows - 1


def level_shift(
    generator: np.random.Generator, values: Floats, start: int, span: int, size: float
) -> tuple[Floats, int]:
    """A permanent step; the first ``span`` rows are the anomaly, later rows are the new normal."""
    values = values.copy()
    values[start:] += _random_sign(generator) * 0.6 * size * local_scale(values, start)
    return values, start + span - 1


def volatility_burst(
    generator: np.random.Generator, values: Floats, start: int, span: int, size: float
) -> tuple[Floats, int]:
    """The changes from row to row become several times larger for a while."""
    values = values.copy()
    scale = local_scale(np.diff(values, prepend=values[0]), start)
    values[start : start + span] += generator.standard_normal(span) * scale * 0.5 * size
    return values, start + span - 1


def flatline(generator: np.random.Generator, values: Floats, start: int, span: int, size: float) -> tuple[Floats, int]:
    """The source repeats its last value, or drops to zero."""
    values = values.copy()
    values[start : start + span] = values[start - 1] if generator.uniform() < 0.6 else 0.0
    return values, start + span - 1


def pump_and_dump(
    generator: np.random.Generator, values: Floats, start: int, span: int, size: float
) -> tuple[Floats, int]:
    """An accelerating rise over ``span`` rows, and a collapse within a few."""
    values = values.copy()
    top = int(span * generator.uniform(0.5, 0.8))
    rise = np.linspace(0, 1, max(top, 1)) ** generator.uniform(1.5, 4)
    fall = np.exp(-np.arange(span - len(rise)) / generator.uniform(1, 5))
    values[start : start + span] += np.concatenate([rise, fall]) * 1.5 * size * local_scale(values, start)
    return values, start + span - 1


def ramp(generator: np.random.Generator, values: Floats, start: int, span: int, size: float) -> tuple[Floats, int]:
    """A slow drift away from normal, and an immediate return."""
    values = values.copy()
    values[start : start + span] += (
        _random_sign(generator) * np.linspace(0, 1, span) * size * local_scale(values, start)
    )
    return values, start + span - 1


def season_break(
    generator: np.random.Generator, values: Floats, start: int, span: int, size: float
) -> tuple[Floats, int]:
    """The daily pattern breaks: ``span`` rows are reversed in time, or replaced by the median of the rows before."""
    values = values.copy()
    rows = values[start : start + span]
    values[start : start + span] = rows[::-1] if generator.uniform() < 0.5 else np.median(values[start - span : start])
    return values, start + span - 1


def more_spikes(
    generator: np.random.Generator, values: Floats, start: int, span: int, size: float
) -> tuple[Floats, int]:
    """Peaks of ordinary height, far more often than usual."""
    values = values.copy()
    height = max(np.quantile(values[:start], 0.995) - np.median(values[:start]), 3 * local_scale(values, start))
    hits = generator.uniform(size=span) < generator.uniform(0.1, 0.3)
    values[start : start + span] += np.where(hits, height, 0.0)
    return values, start + span - 1


def tick(generator: np.random.Generator, values: Floats, start: int, span: int, size: float) -> tuple[Floats, int]:
    """A bad print: one row with an extreme value relative to the usual change from row to row."""
    values = values.copy()
    values[start] += _random_sign(generator) * 2 * size * local_scale(np.diff(values, prepend=values[0]), start)
    return values, start


FAULTS: dict[str, Fault] = {
    "spike": spike,
    "level_shift": level_shift,
    "volatility_burst": volatility_burst,
    "flatline": flatline,
    "pump_and_dump": pump_and_dump,
    "ramp": ramp,
    "season_break": season_break,
    "more_spikes": more_spikes,
    "tick": tick,
}
