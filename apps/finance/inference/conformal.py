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

    def expected(self, series: Series, before: int = 0, due: float = 0.0) -> Floats:
        """(N,) how many events are due until each row, since the first. A gap counts as one day at the most.

        Where ``series`` is the end of a longer one, there are ``before`` rows before it, and ``due`` at its first row.
        """
        if self.per_day is None:
            return self.due(len(series), before)
        steps = np.diff(series.times_ns, prepend=series.times_ns[:1])
        later: Floats = np.cumsum(np.minimum(steps, DAY_NS)) * (self.per_day / DAY_NS)
        return due + later

    def due(self, rows: int, before: int = 0) -> Floats:
        """(rows,) the same of a budget by rows."""
        assert self.per_1000_rows is not None
        return np.arange(before, before + rows) * self.per_1000_rows / 1000


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
class ControlState:
    """Where a control stands after a row: ``level`` is the threshold that the last event left, when ``due`` events
    times the step were due; ``held`` the score that is held; ``quiet`` how many rows ago the last report was."""

    level: float
    due: float
    held: float | None
    quiet: int


@dataclass(frozen=True, slots=True)
class Reported:
    """(N,) the scores at which an event is reported, 0 elsewhere, and (N,) the threshold at each row.

    ``renewed`` (N,) marks those of them that begin an event of their own while an earlier one goes on. ``state`` is
    how the control goes on from the last row.
    """

    scores: Floats
    thresholds: Floats
    renewed: NDArray[np.bool_]
    state: ControlState | None = None


def report(
    scores: Floats, expected: Floats, control: Control, *, first: int = 0, state: ControlState | None = None
) -> Reported:
    """The rows that are reported. Causal: what is said of a row depends on it and earlier ones.

    ``scores`` (N,); ``expected`` (N,) from ``Budget.expected``. Where the control goes on from ``state``, only what
    it says of rows from ``first`` on counts.
    """
    length, reported, renewed = len(scores), np.zeros(len(scores)), np.zeros(len(scores), bool)
    values, due = scores.tolist(), (control.step * expected).tolist()
    if state is None:
        state = ControlState(control.start, due[0] if due else 0.0, None, ONE_EVENT + 1)
    level, since, held, last = state.level, state.due, state.held, first - state.quiet
    raised: list[tuple[int, float, float]] = [(first, level, since)]
    leak = math.exp(-1 / control.hold_rows)
    floor = min(control.least, control.start)
    candidates = (first + np.flatnonzero(scores[first:] >= floor)).tolist()
    row, number = first, 0
    while row < length:
        if held is None:
            while number < len(candidates) and candidates[number] < row:
                number += 1
            if number == len(candidates):
                break
            row = candidates[number]
        value = values[row]
        threshold = max(floor, level - (due[row] - since))
        if value >= threshold and held is not None and row - last > SETTLED:
            settled = max(values[row - SETTLED : row])
            if settled < threshold or row - last > _LASTS:
                renewed[row] = value**2 - settled**2 >= threshold**2
        if value >= threshold and (held is None or renewed[row] or value >= held + control.margin):
            reported[row] = held = value
            if row - last > ONE_EVENT:
                level = threshold + (control.step if value < threshold + control.strong else 0.0)
                since = due[row]
                raised.append((row + 1, level, since))
            last = row
        elif held is not None:
            held = max(value, value + (held - value) * leak)
            if held < threshold:
                held = None
        row += 1
    thresholds = _thresholds(raised, control.step * expected, floor)
    return Reported(reported, thresholds, renewed, ControlState(level, since, held, length - last))


def _thresholds(raised: list[tuple[int, float, float]], due: Floats, floor: float) -> Floats:
    """(N,) the threshold as it falls from each of the levels to which it was raised, (row, level, due by then)."""
    rows, levels, since = (np.array(values) for values in zip(*raised, strict=True))
    part = np.searchsorted(rows, np.arange(len(due)), side="right") - 1
    falling: Floats = np.maximum(floor, levels[part] - (due - since[part]))
    return falling
