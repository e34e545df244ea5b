"""Anomalies that are put into synthetic series, each with the rows that it spans. Numpy alone.

A fault changes (N,) values in rows ``start`` to ``start + span`` (or from there on) and returns the new values with
its last labelled row. ``size`` is in units of the local scale: the typical departure of the series from its local
median.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from apps.finance.types import Floats

Fault = Callable[[np.random.Generator, Floats, int, int, float], tuple[Floats, int]]


def local_scale(values: Floats, start: int, reach: int = 400) -> float:
    """A robust scale of the rows before ``start``: 1.4826 MAD, or the standard deviation where that is zero."""
    before = values[max(0, start - reach) : start]
    spread = 1.4826 * float(np.median(np.abs(before - np.median(before))))
    floor = 0.01 * float(np.abs(before).mean()) + 1e-9
    return max(spread, 0.1 * float(before.std()), floor)


def _sign(generator: np.random.Generator) -> float:
    return 1.0 if generator.uniform() < 0.65 else -1.0


def spike(generator: np.random.Generator, values: Floats, start: int, span: int, size: float) -> tuple[Floats, int]:
    """One to four rows far off."""
    rows = int(generator.integers(1, 5))
    values = values.copy()
    values[start : start + rows] += _sign(generator) * size * local_scale(values, start)
    return values, start + rows - 1


def level_shift(
    generator: np.random.Generator, values: Floats, start: int, span: int, size: float
) -> tuple[Floats, int]:
    """A step that lasts; the first ``span`` rows are the anomaly, later ones the new normal."""
    values = values.copy()
    values[start:] += _sign(generator) * 0.6 * size * local_scale(values, start)
    return values, start + span - 1


def volatility_burst(
    generator: np.random.Generator, values: Floats, start: int, span: int, size: float
) -> tuple[Floats, int]:
    """The changes from row to row grow several times larger for a while."""
    values = values.copy()
    scale = local_scale(np.diff(values, prepend=values[0]), start)
    values[start : start + span] += generator.standard_normal(span) * scale * 0.5 * size
    return values, start + span - 1


def flatline(generator: np.random.Generator, values: Floats, start: int, span: int, size: float) -> tuple[Floats, int]:
    """The source repeats its last value, or falls to zero."""
    values = values.copy()
    values[start : start + span] = values[start - 1] if generator.uniform() < 0.6 else 0.0
    return values, start + span - 1


def pump_and_dump(
    generator: np.random.Generator, values: Floats, start: int, span: int, size: float
) -> tuple[Floats, int]:
    """A rise that quickens over ``span`` rows, and a collapse within a few."""
    values = values.copy()
    top = int(span * generator.uniform(0.5, 0.8))
    rise = np.linspace(0, 1, max(top, 1)) ** generator.uniform(1.5, 4)
    fall = np.exp(-np.arange(span - len(rise)) / generator.uniform(1, 5))
    values[start : start + span] += np.concatenate([rise, fall]) * 1.5 * size * local_scale(values, start)
    return values, start + span - 1


def ramp(generator: np.random.Generator, values: Floats, start: int, span: int, size: float) -> tuple[Floats, int]:
    """A slow slide away, and back at once."""
    values = values.copy()
    values[start : start + span] += _sign(generator) * np.linspace(0, 1, span) * size * local_scale(values, start)
    return values, start + span - 1


def season_break(
    generator: np.random.Generator, values: Floats, start: int, span: int, size: float
) -> tuple[Floats, int]:
    """The rhythm stops: for ``span`` rows the values of other times of day stand in, in random order or reversed."""
    values = values.copy()
    rows = values[start : start + span]
    values[start : start + span] = rows[::-1] if generator.uniform() < 0.5 else np.median(values[start - span : start])
    return values, start + span - 1


def more_spikes(
    generator: np.random.Generator, values: Floats, start: int, span: int, size: float
) -> tuple[Floats, int]:
    """Peaks of a usual height, far more often than usual."""
    values = values.copy()
    height = max(np.quantile(values[:start], 0.995) - np.median(values[:start]), 3 * local_scale(values, start))
    hits = generator.uniform(size=span) < generator.uniform(0.1, 0.3)
    values[start : start + span] += np.where(hits, height, 0.0)
    return values, start + span - 1


def tick(generator: np.random.Generator, values: Floats, start: int, span: int, size: float) -> tuple[Floats, int]:
    """One row far off for how the series moves from row to row: a bad print."""
    values = values.copy()
    values[start] += _sign(generator) * 2 * size * local_scale(np.diff(values, prepend=values[0]), start)
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
