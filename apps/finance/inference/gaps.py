"""Gaps in time: periods without a value that are longer than the pauses that the series has had before."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field

import numpy as np

from apps.finance.datasets.windows import trailing_interval_ns
from apps.finance.inference.detectors.trailing import BLOCK, change, usual_change
from apps.finance.inference.scoring import FULL_SCORE_IMPROBABILITY
from apps.finance.types import DAY_NS, HOUR_NS, MINUTE_NS, SECOND_NS, Series, Times

_GAP_INTERVALS, _PAUSE_INTERVALS = 5.0, 2.0
"""In typical intervals: the minimum length of a gap, and of a step that is recorded as a pause."""
_MIN_ROWS = 64
_WEEKEND_NS, _SATURDAY = 4 * DAY_NS, 5
_DAYS_PER_PAUSE = 8
"""Pauses that occur at least once in this many days are part of the series' rhythm."""
_ROWS_AFTER_GAP, _MAX_EVENT_ROWS = 3, 48
_MAX_PAUSES = 4096
"""The number of longest pauses that are kept: enough to detect a rhythm of eight days over 90 years."""
_YOUNG_PAUSES = 3
"""In the first three days, a step is no gap once this many pauses were at least half as long."""
_MAX_TYPICAL_CHANGES = 4.0


@dataclass(frozen=True, slots=True)
class Gap:
    """No value between the rows ``before`` and ``after``, for ``length_ns``; if ``open``, ``after`` has no value
    either.

    ``score`` is -log10 of the share of earlier steps that were as long, over 5, like the detectors' scores.
    ``ordinary`` says whether the value after the gap is plausible: the change over the gap is at most four typical
    changes times the square root of the gap's length in rows, as for a random walk.
    """

    before: int
    after: int
    length_ns: int
    score: float
    ordinary: bool
    open: bool = False

    @property
    def note(self) -> str:
        """The gap's length in words."""
        return f"no value for {duration(self.length_ns)}" + (", to the end of the series" if self.open else "")

    def explains(self, first: int, last: int) -> bool:
        """Whether an event in these rows is only the ordinary value after the gap.

        The event must begin within three rows after the gap, and last no longer than the longest window of a detector.
        """
        return self.ordinary and self.after <= first <= self.after + _ROWS_AFTER_GAP and last - first <= _MAX_EVENT_ROWS


@dataclass(slots=True)
class Pauses:
    """What later gaps of a series depend on: its longest pauses so far (sorted); the starts and lengths of the three
    longest pauses of its first three days; the time of its first value; whether it ever had a value on a Saturday; and
    the number of its values before the rows at hand."""

    lengths: list[int] = field(default_factory=list)
    starts: list[tuple[int, int]] = field(default_factory=list)
    first_ns: int | None = None
    saturday: bool = False
    values_before: int = 0


def gaps(series: Series, pauses: Pauses | None = None, first: int = 0) -> list[Gap]:
    """The gaps of a series. A gap is known at the first value after it, or once rows without a value have lasted long
    enough.

    A gap is longer than five typical intervals. It is not reported if pauses at least half as long, such as nights and
    weekends, are common: if there were two, and one per eight days; in the first three days, if there were three, or
    one at the same time of day. A pause of up to four days that contains a Saturday is a weekend if the series never
    had a value on a Saturday. On the first day a gap must be shorter than an eighth of the time so far, because a
    longer one may be the end of trading. In a single column of a table, only rows without a value form a gap. Rows
    without a value at the end of the series are an open gap, but not on the first day, nor for up to four days if they
    may be a weekend, since later rows would retract it.

    ``pauses`` is the state after the rows before ``first``. If it is given, it is updated, and only gaps that later
    rows reveal are returned.
    """
    state = pauses or Pauses()
    rows = np.arange(len(series)) if series.joint else np.flatnonzero(np.isfinite(series.target))
    # Blocks for the typical interval are aligned to the first value of the whole series.
    rows = rows[-state.values_before % BLOCK :]
    if not len(rows):
        return []
    earlier = -(-state.values_before // BLOCK) * BLOCK
    times, new = series.times_ns[rows], max(int(np.searchsorted(rows, first)) - 1, 0)
    first_ns = state.first_ns = int(times[0]) if state.first_ns is None else state.first_ns
    typical = trailing_interval_ns(times, new)
    saturdays = np.flatnonzero(_weekday(times) == _SATURDAY)
    first_saturday = 0 if state.saturday else int(saturdays[0]) if len(saturdays) else len(times)
    state.saturday = state.saturday or len(saturdays) > 0
    ends_without_value = int(rows[-1]) < len(series) - 1
    if ends_without_value:
        rows, times = np.append(rows, len(series) - 1), np.append(times, series.times_ns[-1])
    steps = np.diff(times)
    lengths, starts, new_gaps = state.lengths, state.starts, []
    for index in (new + np.flatnonzero(steps[new:] > _PAUSE_INTERVALS * typical[new : len(steps)])).tolist():
        step, is_open = int(steps[index]), ends_without_value and index == len(steps) - 1
        similar_pauses, history = len(lengths) - bisect_left(lengths, (step + 1) // 2), int(times[index]) - first_ns
        if step > _GAP_INTERVALS * typical[index] and earlier + index >= _MIN_ROWS:
            if history < 3 * DAY_NS:
                at_same_time = any(pause[1] >= step / 2 and _same_time(pause[0], int(times[index])) for pause in starts)
                needed = 0.0 if at_same_time else float(_YOUNG_PAUSES)
            else:
                needed = max(2.0, history / DAY_NS / _DAYS_PER_PAUSE)
            is_too_early = history < DAY_NS and (is_open or 8 * step > history)
            end_ns = int(times[index]) + (_WEEKEND_NS if is_open else step)
            is_weekend = step <= _WEEKEND_NS and _has_saturday(int(times[index]), end_ns) and index < first_saturday
            is_between_rows = series.column_of_table and rows[index + 1] == rows[index] + 1
            if similar_pauses < needed and not is_too_early and not is_weekend and not is_between_rows:
                as_long = len(lengths) - bisect_left(lengths, step)
                score = float(
                    np.clip(-np.log10((as_long + 1) / (earlier + index + 1)) / FULL_SCORE_IMPROBABILITY, 0, 1)
                )
                last_row, next_row = int(rows[index]), int(rows[index + 1])
                ordinary = not is_open and _is_ordinary(series, last_row, next_row, step / typical[index])
                new_gaps.append(Gap(last_row, next_row, step, round(score, 4), ordinary, is_open))
        if not is_open:
            insort(lengths, step)
            if history < 3 * DAY_NS:
                starts.append((int(times[index]), step))
                # With tick data, many steps are pauses. Once three are as long, a step is no gap at any time of day.
                if len(starts) > _YOUNG_PAUSES:
                    starts.remove(min(starts, key=lambda pause: pause[1]))
            if len(lengths) >= 2 * _MAX_PAUSES:
                del lengths[:-_MAX_PAUSES]
    del lengths[:-_MAX_PAUSES]
    return new_gaps


def _is_ordinary(series: Series, before: int, after: int, rows: float) -> bool:
    """Whether the change over a gap of ``rows`` typical intervals is within that of a random walk."""
    values = series.target
    typical = usual_change(values[: after + 1], np.abs(change(values[: after + 1], 1)))[after]
    return bool(abs(values[after] - values[before]) <= _MAX_TYPICAL_CHANGES * typical * np.sqrt(rows))


def duration(length_ns: int) -> str:
    """A length of time in its two largest units: ``3 d 4 h``; ``17.5 s`` below two minutes."""
    if length_ns < 2 * MINUTE_NS:
        return f"{length_ns / SECOND_NS:.3g} s"
    for name, unit, lower, lower_unit in (("d", DAY_NS, "h", HOUR_NS), ("h", HOUR_NS, "min", MINUTE_NS)):
        if length_ns >= unit:
            number, remainder = divmod(round(length_ns / lower_unit), unit // lower_unit)
            return f"{number} {name} {remainder} {lower}" if remainder else f"{number} {name}"
    return f"{length_ns / MINUTE_NS:.0f} min"


def _same_time(first_ns: int, second_ns: int) -> bool:
    """Whether two times are within two hours of each other by time of day."""
    difference = abs(first_ns - second_ns) % DAY_NS
    return min(difference, DAY_NS - difference) <= 2 * HOUR_NS


def _weekday(times: Times) -> Times:
    """(N,) the day of the week in UTC, 0 for Monday."""
    return (times // DAY_NS + 3) % 7


def _has_saturday(start_ns: int, end_ns: int) -> bool:
    """Whether a whole Saturday lies between two times."""
    first = -(-start_ns // DAY_NS)
    saturday = first + (_SATURDAY - (first + 3)) % 7
    return (saturday + 1) * DAY_NS <= end_ns
