"""The size of an event in the unit of the values and in robust deviations, and the reason for it in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from apps.finance.inference.detectors.trailing import change, trailing_mean
from apps.finance.types import Floats

MEMORY = 8000
_MAX_ROWS = 48
"""The longest window that is measured."""
_MIN_ROWS = 30
_PER_MEDIAN_DEVIATION, _PER_MEAN_DEVIATION = 1.4826, 1.2533
"""A normal distribution's standard deviation divided by its median, and by its mean, absolute deviation."""


@dataclass(frozen=True, slots=True)
class Magnitude:
    """The size measured at the peak of an event, and ``reason``: why it is an event, with these figures.

    ``size`` is in the unit of the values; ``deviations`` is the same in robust deviations of the series before the
    event. None if there is nothing to measure, or too little history.
    """

    size: float | None
    deviations: float | None
    reason: str


def magnitude(values: Floats, detector: str, first: int, peak: int, expected: float, memory: int = MEMORY) -> Magnitude:
    """The magnitude of an event that begins in row ``first`` of ``values`` (N,) and was found by ``detector``.

    The measured quantity is the one that the detector looks at. For a jump or move: the change from the row before or
    from four rows before. For a level: the distance of the mean of 8 rows from the median of such means. For
    volatility: the mean absolute change over 48 or 12 rows, minus its median. For a value beyond the range, one off its
    forecast, and a pattern (``nearest``, ``rhythm``): the distance from what was ``expected``, in deviations of the
    changes from row to row. The past is up to ``memory`` rows before the event.
    """
    begin = max(0, first - memory - _MAX_ROWS)
    values, first, peak = values[begin : peak + 1], first - begin, peak - begin
    if detector in ("jump", "move"):
        rows, origin = (1, "the row before") if detector == "jump" else (4, "four rows before")
        changes = change(values, rows)
        return _magnitude("a sudden change: {size} from " + origin, changes[peak], 0.0, _spread(changes[:first], 0.0))
    if detector == "level":
        means = trailing_mean(values, 8)
        median = _median(means[:first])
        distance = f"{amount(abs(means[peak] - median))} {'above' if means[peak] > median else 'below'}"
        words = f"a new level: the mean of 8 rows is {distance} its median of {amount(median)}"
        return _magnitude(words, means[peak], median, _spread(means[:first], median))
    if detector in ("high_volatility", "low_volatility"):
        rows, comparison = (48, "larger") if detector == "high_volatility" else (12, "smaller")
        changes = trailing_mean(np.abs(change(values, 1)), rows)
        median = _median(changes[:first])
        words = (
            f"changes {comparison} than usual: {amount(changes[peak])} a row over {rows} rows where "
            f"{amount(median)} is usual"
        )
        return _magnitude(words, changes[peak], median, _spread(changes[:first], median))
    finding = (
        "values unlike those at this time in earlier periods" if detector == "rhythm" else "4 rows unlike any before"
    )
    if detector == "beyond_range":
        finding = f"a value {'above' if values[peak] > _median(values[:first]) else 'below'} all earlier values"
    if detector == "surprise":
        finding = "a value off its forecast"
    words = finding + ": {size} from the expected value"
    return _magnitude(words, values[peak], expected, _spread(change(values, 1)[:first], 0.0))


def _magnitude(words: str, value: float, reference: float, spread: float) -> Magnitude:
    """The magnitude of ``value`` relative to ``reference``; without history, the reason is ``words`` up to the
    colon."""
    size = float(f"{value - reference:.6g}")  # further digits are rounding errors of sums
    if not math.isfinite(size):
        return Magnitude(None, None, words.split(":")[0])
    reason = words.format(size=f"{'+' if size > 0 else ''}{amount(size)}")
    if not spread > 0:
        return Magnitude(size, None, reason)
    deviations = float(f"{size / spread:.4g}")
    return Magnitude(size, deviations, f"{reason}, {abs(deviations):,.1f} robust deviations")


def _median(past: Floats) -> float:
    """The median of the finite values; NaN if there are fewer than 30."""
    past = past[np.isfinite(past)]
    return float(np.median(past)) if len(past) >= _MIN_ROWS else math.nan


def _spread(past: Floats, centre: float) -> float:
    """The robust deviation of the past from ``centre``: the scaled median absolute deviation, or the scaled mean if
    more than half of the past is constant (Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993)."""
    deviations = np.abs(past[np.isfinite(past)] - centre)
    if len(deviations) < _MIN_ROWS:
        return math.nan
    return _PER_MEDIAN_DEVIATION * float(np.median(deviations)) or _PER_MEAN_DEVIATION * float(np.mean(deviations))


def amount(value: float) -> str:
    """A number with four digits in a readable form: 12,346, 1.235, 0.01235, 1.235e-07."""
    size = abs(value)
    if not math.isfinite(value) or (size and not 1e-5 <= size < 1e15):
        return f"{value:.3e}"
    text = f"{value:,.{max(0, 3 - math.floor(math.log10(size))) if size else 0}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
