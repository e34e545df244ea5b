"""How large an event is, in the unit of the values and in robust deviations, and in words why it is one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from apps.finance.inference.detectors.trailing import change, trailing_mean
from apps.finance.types import Floats

MEMORY = 8000
_MAX_ROWS = 48
"""The longest stretch of rows that is measured."""
_MIN_ROWS = 30
_OF_MEDIAN, _OF_MEAN = 1.4826, 1.2533
"""A normal distribution's standard deviation over its median, and over its mean, absolute deviation."""


@dataclass(frozen=True, slots=True)
class Magnitude:
    """What was measured at the peak of an event, and ``reason``, why it is one, with these figures.

    ``size`` is in the unit of the values; ``deviations`` is the same in robust deviations of what the series did before
    the event. None where there is nothing to measure, or too little of a past.
    """

    size: float | None
    deviations: float | None
    reason: str


def magnitude(values: Floats, detector: str, first: int, peak: int, expected: float, memory: int = MEMORY) -> Magnitude:
    """Of an event that begins in the row ``first`` of ``values`` (N,) and is named after ``detector``.

    Measured is what that detector looks at: of a jump the change, from the row before or from four rows before; of a
    level the distance of the mean of 8 rows from the median of such means; of the volatility the mean absolute change
    over 48 or 12 rows, less its median. Of a value beyond all before, of one off its forecast and of a course
    (``nearest``, ``rhythm``) it is the distance from what was ``expected``, in deviations of the changes from row to
    row. The past are up to ``memory`` rows before the event.
    """
    begin = max(0, first - memory - _MAX_ROWS)
    values, first, peak = values[begin : peak + 1], first - begin, peak - begin
    if detector in ("jump", "move"):
        rows, since = (1, "the row before") if detector == "jump" else (4, "four rows before")
        changes = change(values, rows)
        return _magnitude("a sudden change: {size} from " + since, changes[peak], 0.0, _spread(changes[:first], 0.0))
    if detector == "level":
        means = trailing_mean(values, 8)
        usual = _median(means[:first])
        apart = f"{amount(abs(means[peak] - usual))} {'above' if means[peak] > usual else 'below'}"
        words = f"a level not had before: the mean of 8 rows is {apart} its median of {amount(usual)}"
        return _magnitude(words, means[peak], usual, _spread(means[:first], usual))
    if detector in ("high_volatility", "low_volatility"):
        rows, than = (48, "larger") if detector == "high_volatility" else (12, "smaller")
        changes = trailing_mean(np.abs(change(values, 1)), rows)
        usual = _median(changes[:first])
        words = (
            f"changes {than} than usual: {amount(changes[peak])} a row over {rows} rows where {amount(usual)} is usual"
        )
        return _magnitude(words, changes[peak], usual, _spread(changes[:first], usual))
    what = "another course than at this time in other rhythms" if detector == "rhythm" else "4 rows unlike any before"
    if detector == "beyond_range":
        what = f"a value {'above' if values[peak] > _median(values[:first]) else 'below'} all before"
    if detector == "surprise":
        what = "a value off its forecast"
    words = what + ": {size} from what was expected"
    return _magnitude(words, values[peak], expected, _spread(change(values, 1)[:first], 0.0))


def _magnitude(words: str, value: float, usual: float, spread: float) -> Magnitude:
    """``value`` less ``usual``; without a past ``words`` until the colon alone."""
    size = float(f"{value - usual:.6g}")  # more digits would be the rounding of sums
    if not math.isfinite(size):
        return Magnitude(None, None, words.split(":")[0])
    sized = words.format(size=f"{'+' if size > 0 else ''}{amount(size)}")
    if not spread > 0:
        return Magnitude(size, None, sized)
    deviations = float(f"{size / spread:.4g}")
    return Magnitude(size, deviations, f"{sized}, {abs(deviations):,.1f} robust deviations")


def _median(past: Floats) -> float:
    """NaN where fewer than 30 are known."""
    past = past[np.isfinite(past)]
    return float(np.median(past)) if len(past) >= _MIN_ROWS else math.nan


def _spread(past: Floats, middle: float) -> float:
    """The robust deviation of the past from ``middle``: by the median absolute deviation, and by the mean where more
    than half of the past stands still (Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993)."""
    apart = np.abs(past[np.isfinite(past)] - middle)
    if len(apart) < _MIN_ROWS:
        return math.nan
    return _OF_MEDIAN * float(np.median(apart)) or _OF_MEAN * float(np.mean(apart))


def amount(value: float) -> str:
    """A number in four digits as a person reads it: 12,346, 1.235, 0.01235, 1.235e-07."""
    size = abs(value)
    if not math.isfinite(value) or (size and not 1e-5 <= size < 1e15):
        return f"{value:.3e}"
    text = f"{value:,.{max(0, 3 - math.floor(math.log10(size))) if size else 0}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
