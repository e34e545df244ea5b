"""When a row's score begins an event, so that a series gets as many events as were asked for: online conformal control.

The threshold is a quantile tracker (the proportional part of conformal PID control; Angelopoulos, Candès and
Tibshirani, NeurIPS 2023, after adaptive conformal inference; Gibbs and Candès, NeurIPS 2021): it falls by ``step`` for
each event that is due, and rises by ``step`` with each event that comes. So the number of events differs from the
number asked for by at most the range of the scores over ``step``, on any series and through any shift, and no more
than that many are missing or too many in however long a series. Two things are taken from that guarantee on purpose:
the threshold never falls below ``least``, so that a series in which nothing is unusual stays quiet and ordinary rows do
not run together into one event that lasts, and an event
``strong`` above the threshold does not raise it, so that a series with true anomalies does not grow deaf.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.finance.types import DAY_NS, Floats, Series

REPORTED = 1e-6
"""What is above it among reported scores was reported; all others are 0."""
ONE_EVENT = 12
"""Reports at most so many rows apart are of one event, which counts once."""
SETTLED = 12
"""What a score has settled at while an event lasts is the largest of so many rows before."""
_LASTS = 48
"""So many rows after its last report an event that goes on has settled, the longest over which a detector averages."""
_FIRST_STEPS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How many events a user wants, by rows or by time; one of the two is None."""

    per_1000_rows: float | None = None
    per_day: float | None = None

    def rate(self, series: Series) -> float:
        """Events a 1,000 rows; of a budget by time with the time between the first 64 rows."""
        if self.per_day is None:
            assert self.per_1000_rows is not None
            return self.per_1000_rows
        steps = np.diff(series.times_ns[: _FIRST_STEPS + 1])
        return 1000 * self.per_day * (float(np.median(steps)) if len(steps) else 0.0) / DAY_NS

    def expected(self, series: Series) -> Floats:
        """(N,) how many events are due until each row, since the first. A gap counts as one day at the most."""
        if self.per_day is None:
            return self.due(len(series))
        steps = np.diff(series.times_ns, prepend=series.times_ns[:1])
        due: Floats = np.cumsum(np.minimum(steps, DAY_NS)) * (self.per_day / DAY_NS)
        return due

    def due(self, rows: int) -> Floats:
        """(rows,) the same of a budget by rows."""
        assert self.per_1000_rows is not None
        return np.arange(rows) * self.per_1000_rows / 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Control:
    """How the threshold begins and follows, in units of the score; ``step`` 0 leaves it where it begins.

    While an event lasts, its score is held, and let go towards the present one within ``hold_rows`` rows; a row that
    exceeds what is held by ``margin`` is reported again, and the event is over when what is held is below the
    threshold. Where the event goes on for more than 48 rows, or the last 12 scores are below the threshold, a row
    begins an event of its own if what it adds to the largest of those 12 is at the threshold. Scores are root mean
    squares, so what is added is the root of the difference of their squares. So a bad print after another, or a shift
    in the wake of a stronger one, is an event of its own, also while what is held of the first is still high, and a
    long disturbance is one.
    """

    start: float
    step: float = 0.0
    strong: float = 1.0
    hold_rows: float = 60.0
    margin: float = 0.2
    least: float = 0.18
    """Below it there were fewer events, not more, on synthetic series and minute bars."""


@dataclass(frozen=True, slots=True)
class Reported:
    """(N,) the scores at which an event is reported, 0 elsewhere, and (N,) the threshold at each row.

    ``renewed`` (N,) marks those of them that begin an event of their own while an earlier one goes on.
    """

    scores: Floats
    thresholds: Floats
    renewed: NDArray[np.bool_]


def report(scores: Floats, expected: Floats, control: Control) -> Reported:
    """The rows that are reported. Causal: what is said of a row depends on it and earlier ones.

    ``scores`` (N,); ``expected`` (N,) from ``Budget.expected``.
    """
    length, reported, renewed = len(scores), np.zeros(len(scores)), np.zeros(len(scores), bool)
    values, due = scores.tolist(), (control.step * expected).tolist()
    level, since, last = control.start, 0, -ONE_EVENT - 1
    raised: list[tuple[int, float]] = [(0, control.start)]
    leak = math.exp(-1 / control.hold_rows)
    floor = min(control.least, control.start)
    held: float | None = None
    candidates = np.flatnonzero(scores >= floor).tolist()
    row = number = 0
    while row < length:
        if held is None:
            while number < len(candidates) and candidates[number] < row:
                number += 1
            if number == len(candidates):
                break
            row = candidates[number]
        value = values[row]
        threshold = max(floor, level - (due[row] - due[since]))
        if value >= threshold and held is not None and row - last > SETTLED:
            settled = max(values[row - SETTLED : row])
            if settled < threshold or row - last > _LASTS:
                renewed[row] = value**2 - settled**2 >= threshold**2
        if value >= threshold and (held is None or renewed[row] or value >= held + control.margin):
            reported[row] = held = value
            if row - last > ONE_EVENT:
                level = threshold + (control.step if value < threshold + control.strong else 0.0)
                since = row
                raised.append((row + 1, level))
            last = row
        elif held is not None:
            held = max(value, value + (held - value) * leak)
            if held < threshold:
                held = None
        row += 1
    return Reported(reported, _thresholds(raised, control.step * expected, floor), renewed)


def _thresholds(raised: list[tuple[int, float]], due: Floats, floor: float) -> Floats:
    """(N,) the threshold as it falls from each of the levels to which it was raised, (row, level)."""
    rows = np.arange(len(due))
    first = np.array([row for row, _ in raised])
    part = np.searchsorted(first, rows, side="right") - 1
    levels = np.array([level for _, level in raised])[part]
    falling: Floats = np.maximum(floor, levels - (due - due[np.maximum(first[part] - 1, 0)]))
    return falling
