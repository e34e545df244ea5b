"""Gaps in time: stretches without a value that are longer than the pauses which a series has had until then."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field

import numpy as np

from apps.finance.datasets.windows import trailing_interval_ns
from apps.finance.inference.detectors.trailing import BLOCK, change, usual_change
from apps.finance.inference.scoring import FULL
from apps.finance.types import DAY_NS, HOUR_NS, MINUTE_NS, SECOND_NS, Series, Times

_LONG, _PAUSE = 5.0, 2.0
"""In usual intervals: the least gap, and the least step that is remembered as a pause."""
_MIN_ROWS = 64
_WEEKEND_NS, _SATURDAY = 4 * DAY_NS, 5
_DAYS_A_PAUSE = 8
"""Pauses that come at least once in so many days are the series' rhythm."""
_AFTER, _LASTING = 3, 48
_MAX_PAUSES = 4096
"""So many of the longest are remembered: enough to tell a rhythm of eight days from none through 90 years."""
_YOUNG_PAUSES = 3
"""In the first three days a series has no rhythm that a gap could break once so many pauses are as long."""
_USUAL_CHANGES = 4.0


@dataclass(frozen=True, slots=True)
class Gap:
    """No value between the rows ``before`` and ``after``, for ``length_ns``; nor in ``after`` where it is ``open``.

    ``score`` is -log10 of the share of earlier steps that were as long, over 5, as the scores of detectors are.
    ``ordinary`` is whether the value after it is where it may be: the change over the gap is at most four usual changes
    times the root of the gap's length in rows, as that of a random walk is.
    """

    before: int
    after: int
    length_ns: int
    score: float
    ordinary: bool
    open: bool = False

    @property
    def note(self) -> str:
        """How long it is, in words."""
        return f"no value for {duration(self.length_ns)}" + (", to the end of the series" if self.open else "")

    def explains(self, first: int, last: int) -> bool:
        """Whether an event in these rows is but the value after the gap, an ordinary one.

        It begins within three rows after it, and lasts no longer than a level or a mean over rows remembers.
        """
        return self.ordinary and self.after <= first <= self.after + _AFTER and last - first <= _LASTING


@dataclass(slots=True)
class Pauses:
    """What the gaps to come of a series depend on: its longest pauses so far, sorted, and starts and lengths of the
    three longest of its first three days, the time of its first value, whether it had one on a Saturday, and how many
    it had before the rows that are still at hand."""

    lengths: list[int] = field(default_factory=list)
    starts: list[tuple[int, int]] = field(default_factory=list)
    first_ns: int | None = None
    saturday: bool = False
    values_before: int = 0


def gaps(series: Series, pauses: Pauses | None = None, first: int = 0) -> list[Gap]:
    """The gaps of a series, each known when the first value after it is there, or rows without one go on for so long.

    A gap is longer than five usual intervals. It is none where pauses at least half as long came before, as nights and
    weekends do: twice, and once in eight days; in the first three days three times, or once at the same time. A pause
    of up to four days with a Saturday in it is a weekend where no value was ever of a Saturday. Within the first day
    only what is shorter than an eighth of the time so far can be told from a closing hour. In a column of a table only
    rows without a value make a gap. Rows without a value at the end are one that is open, not on the first day, nor up
    to four days in which a weekend may come: what follows would take such a one back.

    Where ``pauses`` has what is known of a series until its row ``first``, those gaps alone that later rows tell of;
    ``pauses`` is then brought up to date.
    """
    past = pauses or Pauses()
    rows = np.arange(len(series)) if series.joint else np.flatnonzero(np.isfinite(series.target))
    # The usual interval is renewed with every so many values, from the first of the whole series on.
    rows = rows[-past.values_before % BLOCK :]
    if not len(rows):
        return []
    earlier = -(-past.values_before // BLOCK) * BLOCK
    times, new = series.times_ns[rows], max(int(np.searchsorted(rows, first)) - 1, 0)
    began = past.first_ns = int(times[0]) if past.first_ns is None else past.first_ns
    usual = trailing_interval_ns(times, new)
    saturdays = np.flatnonzero(_weekday(times) == _SATURDAY)
    first_saturday = 0 if past.saturday else int(saturdays[0]) if len(saturdays) else len(times)
    past.saturday = past.saturday or len(saturdays) > 0
    dead = int(rows[-1]) < len(series) - 1
    if dead:
        rows, times = np.append(rows, len(series) - 1), np.append(times, series.times_ns[-1])
    steps = np.diff(times)
    lengths, starts, found = past.lengths, past.starts, []
    for place in (new + np.flatnonzero(steps[new:] > _PAUSE * usual[new : len(steps)])).tolist():
        step, ends = int(steps[place]), dead and place == len(steps) - 1
        before, history = len(lengths) - bisect_left(lengths, (step + 1) // 2), int(times[place]) - began
        if step > _LONG * usual[place] and earlier + place >= _MIN_ROWS:
            if history < 3 * DAY_NS:
                same = any(one[1] >= step / 2 and _same_time(one[0], int(times[place])) for one in starts)
                needed = 0.0 if same else float(_YOUNG_PAUSES)
            else:
                needed = max(2.0, history / DAY_NS / _DAYS_A_PAUSE)
            young = history < DAY_NS and (ends or 8 * step > history)
            until = int(times[place]) + (_WEEKEND_NS if ends else step)
            weekend = step <= _WEEKEND_NS and _has_saturday(int(times[place]), until) and place < first_saturday
            told = series.column_of_table and rows[place + 1] == rows[place] + 1
            if before < needed and not young and not weekend and not told:
                as_long = len(lengths) - bisect_left(lengths, step)
                score = float(np.clip(-np.log10((as_long + 1) / (earlier + place + 1)) / FULL, 0, 1))
                last, next_ = int(rows[place]), int(rows[place + 1])
                ordinary = not ends and _ordinary(series, last, next_, step / usual[place])
                found.append(Gap(last, next_, step, round(score, 4), ordinary, ends))
        if not ends:
            insort(lengths, step)
            if history < 3 * DAY_NS:
                starts.append((int(times[place]), step))
                # Of ticks every few are a pause. Where three are as long, a step is no gap at any time of day.
                if len(starts) > _YOUNG_PAUSES:
                    starts.remove(min(starts, key=lambda one: one[1]))
            if len(lengths) >= 2 * _MAX_PAUSES:
                del lengths[:-_MAX_PAUSES]
    del lengths[:-_MAX_PAUSES]
    return found


def _ordinary(series: Series, before: int, after: int, rows: float) -> bool:
    values = series.target
    usual = usual_change(values[: after + 1], np.abs(change(values[: after + 1], 1)))[after]
    return bool(abs(values[after] - values[before]) <= _USUAL_CHANGES * usual * np.sqrt(rows))


def duration(length_ns: int) -> str:
    """A length of time in its two largest units: ``3 d 4 h``, ``17.5 s`` below two minutes."""
    if length_ns < 2 * MINUTE_NS:
        return f"{length_ns / SECOND_NS:.3g} s"
    for name, unit, lower, part in (("d", DAY_NS, "h", HOUR_NS), ("h", HOUR_NS, "min", MINUTE_NS)):
        if length_ns >= unit:
            whole, rest = divmod(round(length_ns / part), unit // part)
            return f"{whole} {name} {rest} {lower}" if rest else f"{whole} {name}"
    return f"{length_ns / MINUTE_NS:.0f} min"


def _same_time(one: int, two: int) -> bool:
    """Whether two times are within two hours of each other on the clock."""
    apart = abs(one - two) % DAY_NS
    return min(apart, DAY_NS - apart) <= 2 * HOUR_NS


def _weekday(times: Times) -> Times:
    """(N,) 0 for Monday, in UTC."""
    return (times // DAY_NS + 3) % 7


def _has_saturday(start_ns: int, end_ns: int) -> bool:
    """Whether a whole Saturday lies between two times."""
    first = -(-start_ns // DAY_NS)
    saturday = first + (_SATURDAY - (first + 3)) % 7
    return (saturday + 1) * DAY_NS <= end_ns
