"""From scores to events: what begins one, how long it lasts, and which detector found it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from apps.finance.inference.conformal import SETTLED, Reported
from apps.finance.inference.corporate_actions import CorporateAction
from apps.finance.inference.detectors import CANDIDATES, DETECTORS, JOINT
from apps.finance.inference.detectors.joint import contributing
from apps.finance.inference.gaps import Gap
from apps.finance.inference.magnitude import MEMORY, magnitude
from apps.finance.inference.onset import REACH, onset
from apps.finance.inference.scoring import HIGHEST
from apps.finance.types import Anomaly, Direction, Floats, Forecast, Series, iso_utc

Mask = NDArray[np.bool_]

_TABLE = {**DETECTORS, **JOINT, "surprise": CANDIDATES["surprise"]}
_RELEASE = 0.7
"""An event goes on while the score is above this share of the threshold."""
_NEAR = 12
"""Events with at most so many ordinary rows between them are one."""
_UNUSUAL = 3.0
"""The least -log10 p of a detector that keeps an event from ending."""
_ABOUT = 0.8
"""At this share of the highest -log10 p a detector is about as sure as the surest, and says about as much."""
_DIP = 4
"""For so many rows the score may fall below the release without ending an event."""
_PAUSE = 48
"""An event has ended when nothing has been so unusual for so many rows, the longest over which a detector averages."""


def fresh(channels: Mapping[str, Floats], least: float = _UNUSUAL) -> Mask:
    """(N,) where some channel is at ``least`` or above for a cause that is still there.

    ``channels`` are those of ``scoring.improbability``. A mean over w rows stays high for w - 1 rows after its cause
    has gone, and a change over w rows comes back after w: that much is taken off the end of each of its stretches, and
    of two so near to each other only off the later one's. A state, such as a new level, counts for its first rows.
    """
    found = np.zeros(len(next(iter(channels.values()))), bool)
    for name, values in channels.items():
        found |= _while_it_acts(values >= least, _TABLE[name].echo, _TABLE[name].holds)
    return found


def _while_it_acts(high: Mask, echo: int, holds: int = 0) -> Mask:
    """(N,) the stretches of ``high`` less the ``echo`` at the end of each, and ``holds`` rows long at the most."""
    found, rows = np.zeros(len(high), bool), np.flatnonzero(high)
    if not len(rows):
        return found
    apart = np.flatnonzero(np.diff(rows) > echo + 1)
    firsts, lasts = rows[np.append(0, apart + 1)], rows[np.append(apart, len(rows) - 1)]
    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        end = max(last - echo, first)
        found[first : (min(end, first + holds) if holds else end) + 1] = True
    return found


def spans(reported: Reported, scores: Floats, lasting: Mask) -> list[tuple[int, int]]:
    """First and last rows of events, in order and apart.

    An event begins at the rows that are ``reported``. It ends with the last high row of ``lasting`` before ``scores``
    has been below 0.7 of the threshold for more than 4 rows, or ``lasting`` has paused for more than 48. Events with at
    most 12 rows between them are one, but a ``renewed`` one ends the one before it.
    """
    high = scores >= _RELEASE * reported.thresholds
    low = np.flatnonzero((_rows_since(high) > _DIP) | (_rows_since(lasting) > _PAUSE))
    found: list[tuple[int, int]] = []
    for row in np.flatnonzero(reported.scores).tolist():
        after = int(np.searchsorted(low, row, "right"))
        end = int(low[after]) if after < len(low) else len(scores)
        there = np.flatnonzero(lasting[row:end] & high[row:end])
        last = row + int(there[-1]) if len(there) else row
        if found and reported.renewed[row]:
            found[-1] = (found[-1][0], min(found[-1][1], row - 1))
            found.append((row, last))
        elif found and row - found[-1][1] <= _NEAR + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((row, last))
    return found


def _rows_since(mask: Mask) -> NDArray[np.int64]:
    """(N,) how many rows ago the mask last held."""
    rows = np.arange(len(mask))
    since: NDArray[np.int64] = rows - np.maximum.accumulate(np.where(mask, rows, -1))
    return since


def anomalies(
    series: Series,
    forecast: Forecast,
    scores: Floats,
    reported: Reported,
    channels: Mapping[str, Floats],
    *,
    gaps: Sequence[Gap] = (),
    actions: Sequence[CorporateAction] = (),
    factor: Floats | None = None,
    memory: int = MEMORY,
) -> tuple[Anomaly, ...]:
    """The events in a scored series; ``channels`` are those of ``scoring.improbability``, ``scores`` from them.

    Where the level is unusual at the peak, an event says since when, as estimated at its first row. A gap is an event
    from the row before it to the row after it, in place of what only the value after it made; its peak is that value,
    or the last one where none has come. A corporate action that shows is one of a single row. ``factor`` (N,) is what
    corporate actions have made of the values, so that an event is measured by what they would have been without, in
    up to ``memory`` rows before it.
    """
    rows = spans(reported, scores, fresh(channels))
    rows = [span for span in rows if not any(gap.explains(*span) for gap in gaps)]
    found = []
    steady = series.target if factor is None else series.target / factor
    for first, last in rows:
        peak = first + int(np.argmax(scores[first : last + 1]))
        said = _added(channels, first) if reported.renewed[first] else channels
        channel = _named(said, slice(first, max(last, peak + _NEAR) + 1), peak)
        columns = contributing(series, peak) if series.joint else ()
        one = _anomaly(series, forecast, (first, last, peak), float(scores[peak]), _TABLE[channel].word)
        if not series.joint:
            unit = 1.0 if factor is None else float(factor[peak])
            measured = magnitude(steady[: peak + 1] * unit, channel, first, peak, one.expected, memory)
            one = replace(one, size=measured.size, deviations=measured.deviations, reason=measured.reason)
        if _of_level(channels, channel, peak) and not reported.renewed[first] and not _acted(actions, first):
            one = _dated(one, series, onset(series.target, first))
        reason = ": ".join(["columns do not move together as they did", *([", ".join(columns)] if columns else [])])
        found.append(replace(one, columns=columns, reason=reason if series.joint else one.reason))
    for gap in gaps:
        peak = gap.before if gap.open else gap.after
        one = _anomaly(series, forecast, (gap.before, gap.after, peak), gap.score, "gap")
        found.append(replace(one, note=gap.note, reason=f"a gap: {gap.note}"))
    for action in actions:
        if action.listed:
            row = action.row
            one = _anomaly(series, forecast, (row, row, row), float(scores[row]), "corporate_action")
            found.append(replace(one, note=action.note, reason=f"a corporate action: {action.note}"))
    return tuple(sorted(found, key=lambda one: (one.start_ns, one.end_ns)))


def _of_level(channels: Mapping[str, Floats], channel: str, peak: int) -> bool:
    """Whether the level is unusual at the peak of an event that is named after ``channel``."""
    return channel == "level" or ("level" in channels and bool(channels["level"][peak] >= _UNUSUAL))


def _acted(actions: Sequence[CorporateAction], row: int) -> bool:
    """Whether a corporate action lies in the rows from which an onset would be estimated."""
    return any(0 <= row - action.row < REACH for action in actions)


def _dated(one: Anomaly, series: Series, row: int | None) -> Anomaly:
    """The event with the row of its onset, where there is one."""
    if row is None:
        return one
    since = int(series.times_ns[row])
    moment = iso_utc(since).replace("T", " ").removesuffix("Z")
    return replace(one, since_ns=since, note=f"away from its former median since about {moment} UTC")


def _added(channels: Mapping[str, Floats], first: int) -> dict[str, Floats]:
    """What each detector says beyond what it said before the row ``first``, where an earlier event went on."""
    before = slice(first - SETTLED, first)
    return {name: np.maximum(values - values[before].max(), 0) for name, values in channels.items()}


def _named(channels: Mapping[str, Floats], rows: slice, peak: int) -> str:
    """The detector that speaks at the peak; of several about as sure, the one that goes on to do so.

    What a mean over many rows only repeats does not count. Of those that say about as much the first in the table.
    """
    there = {name: min(float(values[peak]), HIGHEST) for name, values in channels.items()}
    sure = [name for name, value in there.items() if value >= _ABOUT * max(there.values())]

    def goes_on(name: str) -> float:
        values = channels[name][rows]
        acts = _while_it_acts(values >= _UNUSUAL, _TABLE[name].echo)
        return float(np.minimum(values, HIGHEST)[acts].sum())

    said = {name: goes_on(name) for name in sure}
    return next(name for name in sure if said[name] >= _ABOUT * max(said.values()))


def _anomaly(series: Series, forecast: Forecast, rows: tuple[int, int, int], score: float, word: str) -> Anomaly:
    """An event in the rows first, last and peak."""
    first, last, peak = rows
    low, expected, high = forecast.quantiles[peak][[0, forecast.quantiles.shape[1] // 2, -1]]
    observed = float(series.target[peak])
    direction: Direction = "above" if observed > high else "below" if observed < low else "inside"
    return Anomaly(
        start_ns=int(series.times_ns[first]),
        end_ns=int(series.times_ns[last]),
        peak_ns=int(series.times_ns[peak]),
        score=round(score, 4),
        observed=observed,
        expected=float(expected),
        low=float(low),
        high=float(high),
        direction=direction,
        channel=word,
    )
