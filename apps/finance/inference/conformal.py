"""Online conformal control: adapts the threshold so that a series gets as many events as were asked for.

The threshold is a quantile tracker (the proportional part of conformal PID control; Angelopoulos, Candès and
Tibshirani, NeurIPS 2023, after adaptive conformal inference; Gibbs and Candès, NeurIPS 2021). It falls by ``step`` for
each event that is due and rises by ``step`` with each event that occurs. So on any series and through any shift, the
number of events differs from the requested one by at most the range of the scores over ``step``, however long the
series is. Two deliberate exceptions weaken that guarantee. The threshold never falls below ``least``, so that a series
in which nothing is unusual stays quiet and ordinary rows do not merge into one long event. An event ``strong`` above
the threshold does not raise it, so that true anomalies do not make the detector insensitive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.finance.types import DAY_NS, Floats, Series

REPORTED = 1e-6
"""Reported scores are above this; all others are 0."""
MERGE_ROWS = 12
"""Reports at most this many rows apart belong to one event, which counts once."""
SETTLING_ROWS = 12
"""The settled score of an ongoing event is the maximum over this many rows before."""
_LONG_EVENT_ROWS = 48
"""An ongoing event has settled this many rows after its last report: the longest window over which a detector averages.
"""
_RATE_STEPS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """The number of events that a user wants, by rows or by time; one of the two is None."""

    per_1000_rows: float | None = None
    per_day: float | None = None

    def rate(self, series: Series) -> float:
        """Events per 1,000 rows; a budget by time is converted with the median time between the first 64 rows."""
        if self.per_day is None:
            assert self.per_1000_rows is not None
            return self.per_1000_rows
        steps = np.diff(series.times_ns[: _RATE_STEPS + 1])
        return 1000 * self.per_day * (float(np.median(steps)) if len(steps) else 0.0) / DAY_NS

    def expected(self, series: Series, before: int = 0, due: float = 0.0) -> Floats:
        """(N,) the number of events due up to each row since the first. A gap in time counts as one day at most.

        If ``series`` is the end of a longer one, ``before`` is the number of rows before it and ``due`` the number of
        events due at its first row.
        """
        if self.per_day is None:
            return self.due(len(series), before)
        steps = np.diff(series.times_ns, prepend=series.times_ns[:1])
        later: Floats = np.cumsum(np.minimum(steps, DAY_NS)) * (self.per_day / DAY_NS)
        return due + later

    def due(self, rows: int, before: int = 0) -> Floats:
        """(rows,) the same for a budget by rows."""
        assert self.per_1000_rows is not None
        return np.arange(before, before + rows) * self.per_1000_rows / 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Control:
    """The threshold's start and how it adapts, in units of the score; with ``step`` 0 it stays constant.

    While an event lasts, its score is held and decays towards the current score with a time constant of ``hold_rows``
    rows. A row that exceeds the held score by ``margin`` is reported again; the event is over when the held score is
    below the threshold. If the last report is more than 48 rows ago, or the last 12 scores are below the threshold, a
    row begins a new event if its increase over the largest of those 12 scores reaches the threshold. Scores are root
    mean squares, so the increase is the root of the difference of their squares. So a bad print after another, or a
    shift in the wake of a stronger one, is a separate event even while the held score of the first is high, and a long
    disturbance is one event.
    """

    start: float
    step: float = 0.0
    strong: float = 1.0
    hold_rows: float = 60.0
    margin: float = 0.2
    least: float = 0.18
    """The minimum threshold. Lower values gave fewer events, not more, on synthetic series and minute bars."""


@dataclass(frozen=True, slots=True)
class ControlState:
    """The control's state after a row: ``level`` is the threshold that the last event left, ``due`` the events due by
    then times the step, ``held`` the held score, ``quiet`` the number of rows since the last report."""

    level: float
    due: float
    held: float | None
    quiet: int


@dataclass(frozen=True, slots=True)
class Reported:
    """(N,) the scores at which an event is reported, 0 elsewhere, and (N,) the threshold at each row.

    ``renewed`` (N,) marks the reports that begin a new event while an earlier one lasts. ``state`` is the control's
    state after the last row.
    """

    scores: Floats
    thresholds: Floats
    renewed: NDArray[np.bool_]
    state: ControlState | None = None


def report(
    scores: Floats, expected: Floats, control: Control, *, first: int = 0, state: ControlState | None = None
) -> Reported:
    """The rows that are reported. Causal: the result for a row depends only on it and earlier rows.

    ``scores`` (N,); ``expected`` (N,) from ``Budget.expected``. If the control continues from ``state``, only the
    results from row ``first`` on are valid.
    """
    length, reported, renewed = len(scores), np.zeros(len(scores)), np.zeros(len(scores), bool)
    values, due = scores.tolist(), (control.step * expected).tolist()
    if state is None:
        state = ControlState(control.start, due[0] if due else 0.0, None, MERGE_ROWS + 1)
    level, due_at_level, held, last_report = state.level, state.due, state.held, first - state.quiet
    raised: list[tuple[int, float, float]] = [(first, level, due_at_level)]
    decay = math.exp(-1 / control.hold_rows)
    floor = min(control.least, control.start)
    candidates = (first + np.flatnonzero(scores[first:] >= floor)).tolist()
    row, candidate_index = first, 0
    while row < length:
        if held is None:
            while candidate_index < len(candidates) and candidates[candidate_index] < row:
                candidate_index += 1
            if candidate_index == len(candidates):
                break
            row = candidates[candidate_index]
        value = values[row]
        threshold = max(floor, level - (due[row] - due_at_level))
        if value >= threshold and held is not None and row - last_report > SETTLING_ROWS:
            settled = max(values[row - SETTLING_ROWS : row])
            if settled < threshold or row - last_report > _LONG_EVENT_ROWS:
                renewed[row] = value**2 - settled**2 >= threshold**2
        if value >= threshold and (held is None or renewed[row] or value >= held + control.margin):
            reported[row] = held = value
            if row - last_report > MERGE_ROWS:
                level = threshold + (control.step if value < threshold + control.strong else 0.0)
                due_at_level = due[row]
                raised.append((row + 1, level, due_at_level))
            last_report = row
        elif held is not None:
            held = max(value, value + (held - value) * decay)
            if held < threshold:
                held = None
        row += 1
    thresholds = _thresholds(raised, control.step * expected, floor)
    return Reported(reported, thresholds, renewed, ControlState(level, due_at_level, held, length - last_report))


def _thresholds(raised: list[tuple[int, float, float]], due: Floats, floor: float) -> Floats:
    """(N,) the threshold as it falls from each level to which it was raised; ``raised`` has (row, level, due at that
    row)."""
    rows, levels, due_at_level = (np.array(values) for values in zip(*raised, strict=True))
    segment = np.searchsorted(rows, np.arange(len(due)), side="right") - 1
    falling: Floats = np.maximum(floor, levels[segment] - (due - due_at_level[segment]))
    return falling
