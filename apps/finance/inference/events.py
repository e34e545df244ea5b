"""From scores to events: where an event begins and ends, and which detector found it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from apps.finance.inference.conformal import SETTLING_ROWS, Reported
from apps.finance.inference.corporate_actions import CorporateAction
from apps.finance.inference.detectors import CANDIDATES, DETECTORS, JOINT
from apps.finance.inference.detectors.joint import contributing_columns
from apps.finance.inference.gaps import Gap
from apps.finance.inference.magnitude import MEMORY, magnitude
from apps.finance.inference.onset import LOOKBACK_ROWS, onset
from apps.finance.inference.scoring import MAX_IMPROBABILITY
from apps.finance.types import Anomaly, Direction, Floats, Forecast, Series, iso_utc

Mask = NDArray[np.bool_]

_DETECTORS_BY_NAME = {**DETECTORS, **JOINT, "surprise": CANDIDATES["surprise"]}
_RELEASE_SHARE = 0.7
"""An event continues while the score is above this share of the threshold."""
_MERGE_ROWS = 12
"""Events with at most this many ordinary rows between them are merged."""
_MIN_IMPROBABILITY = 3.0
"""The minimum -log10 p of a detector that keeps an event from ending."""
_TIE_SHARE = 0.8
"""Detectors with at least this share of the highest -log10 p count as equally certain."""
_DIP_ROWS = 4
"""The score may fall below the release level for this many rows without ending an event."""
_PAUSE_ROWS = 48
"""An event ends if no detector is that unusual for this many rows, the longest window over which one averages."""


def active_rows(channels: Mapping[str, Floats], min_improbability: float = _MIN_IMPROBABILITY) -> Mask:
    """(N,) where some channel is at ``min_improbability`` or above for a cause that is still present.

    ``channels`` are those of ``scoring.improbability``. A mean over w rows stays high for w - 1 rows after its cause is
    gone, and a change over w rows reverses after w; that many rows are removed from the end of each run of high rows.
    Runs less than that apart are treated as one. A state, such as a new level, counts only for its first rows.
    """
    is_active = np.zeros(len(next(iter(channels.values()))), bool)
    for name, values in channels.items():
        is_active |= _without_echo(
            values >= min_improbability, _DETECTORS_BY_NAME[name].echo_rows, _DETECTORS_BY_NAME[name].max_hold_rows
        )
    return is_active


def _without_echo(high: Mask, echo_rows: int, max_hold_rows: int = 0) -> Mask:
    """(N,) the runs of ``high``, each without its last ``echo_rows`` rows, and at most ``max_hold_rows`` long unless
    that is 0."""
    kept, rows = np.zeros(len(high), bool), np.flatnonzero(high)
    if not len(rows):
        return kept
    breaks = np.flatnonzero(np.diff(rows) > echo_rows + 1)
    firsts, lasts = rows[np.append(0, breaks + 1)], rows[np.append(breaks, len(rows) - 1)]
    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        end = max(last - echo_rows, first)
        kept[first : (min(end, first + max_hold_rows) if max_hold_rows else end) + 1] = True
    return kept


def event_spans(reported: Reported, scores: Floats, lasting: Mask) -> list[tuple[int, int]]:
    """First and last rows of the events, in order and disjoint.

    An event begins at a reported row. It ends with the last high row of ``lasting`` before ``scores`` has been below
    0.7 of the threshold for more than 4 rows, or ``lasting`` has been false for more than 48. Events with at most 12
    rows between them are merged, unless the second is ``renewed``, which ends the first.
    """
    high = scores >= _RELEASE_SHARE * reported.thresholds
    low = np.flatnonzero((_rows_since(high) > _DIP_ROWS) | (_rows_since(lasting) > _PAUSE_ROWS))
    events: list[tuple[int, int]] = []
    for row in np.flatnonzero(reported.scores).tolist():
        next_low = int(np.searchsorted(low, row, "right"))
        end = int(low[next_low]) if next_low < len(low) else len(scores)
        active = np.flatnonzero(lasting[row:end] & high[row:end])
        last = row + int(active[-1]) if len(active) else row
        if events and reported.renewed[row]:
            events[-1] = (events[-1][0], min(events[-1][1], row - 1))
            events.append((row, last))
        elif events and row - events[-1][1] <= _MERGE_ROWS + 1:
            events[-1] = (events[-1][0], max(events[-1][1], last))
        else:
            events.append((row, last))
    return events


def _rows_since(mask: Mask) -> NDArray[np.int64]:
    """(N,) the number of rows since the mask was last true."""
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

    If the level is unusual at the peak, the event states since when, as estimated at its first row. A gap is an event
    from the row before it to the row after it, and replaces events caused only by the value after it; its peak is that
    value, or the last row if no value has followed. A visible corporate action is an event of a single row. ``factor``
    (N,) is the cumulative effect of corporate actions on the values; an event is measured on the values without that
    effect, in up to ``memory`` rows before it.
    """
    spans = event_spans(reported, scores, active_rows(channels))
    spans = [span for span in spans if not any(gap.explains(*span) for gap in gaps)]
    events = []
    adjusted = series.target if factor is None else series.target / factor
    for first, last in spans:
        peak = first + int(np.argmax(scores[first : last + 1]))
        own_channels = _increase_since(channels, first) if reported.renewed[first] else channels
        channel = _strongest_detector(own_channels, slice(first, max(last, peak + _MERGE_ROWS) + 1), peak)
        columns = contributing_columns(series, peak) if series.joint else ()
        event = _make_anomaly(
            series, forecast, (first, last, peak), float(scores[peak]), _DETECTORS_BY_NAME[channel].channel
        )
        if not series.joint:
            unit = 1.0 if factor is None else float(factor[peak])
            measured = magnitude(adjusted[: peak + 1] * unit, channel, first, peak, event.expected, memory)
            event = replace(event, size=measured.size, deviations=measured.deviations, reason=measured.reason)
        if (
            _is_level_change(channels, channel, peak)
            and not reported.renewed[first]
            and not _action_near(actions, first)
        ):
            event = _with_onset(event, series, onset(series.target, first))
        reason = ": ".join(["columns do not move together as before", *([", ".join(columns)] if columns else [])])
        events.append(replace(event, columns=columns, reason=reason if series.joint else event.reason))
    for gap in gaps:
        peak = gap.before if gap.open else gap.after
        event = _make_anomaly(series, forecast, (gap.before, gap.after, peak), gap.score, "gap")
        events.append(replace(event, note=gap.note, reason=f"a gap: {gap.note}"))
    for action in actions:
        if action.listed:
            row = action.row
            event = _make_anomaly(series, forecast, (row, row, row), float(scores[row]), "corporate_action")
            events.append(replace(event, note=action.note, reason=f"a corporate action: {action.note}"))
    return tuple(sorted(events, key=lambda event: (event.start_ns, event.end_ns)))


def _is_level_change(channels: Mapping[str, Floats], channel: str, peak: int) -> bool:
    """Whether the level is unusual at the peak of an event found by the detector ``channel``."""
    return channel == "level" or ("level" in channels and bool(channels["level"][peak] >= _MIN_IMPROBABILITY))


def _action_near(actions: Sequence[CorporateAction], row: int) -> bool:
    """Whether a corporate action lies in the rows from which an onset would be estimated."""
    return any(0 <= row - action.row < LOOKBACK_ROWS for action in actions)


def _with_onset(event: Anomaly, series: Series, row: int | None) -> Anomaly:
    """The event with the time of its onset ``row``, if there is one."""
    if row is None:
        return event
    since = int(series.times_ns[row])
    time = iso_utc(since).replace("T", " ").removesuffix("Z")
    return replace(event, since_ns=since, note=f"away from its former median since about {time} UTC")


def _increase_since(channels: Mapping[str, Floats], first: int) -> dict[str, Floats]:
    """The increase of each channel over its maximum just before the row ``first``, while an earlier event lasts."""
    rows_before = slice(first - SETTLING_ROWS, first)
    return {name: np.maximum(values - values[rows_before].max(), 0) for name, values in channels.items()}


def _strongest_detector(channels: Mapping[str, Floats], rows: slice, peak: int) -> str:
    """The detector that is strongest at the peak; among equally certain ones, the one with the largest sum over the
    event.

    Rows where a mean over many rows only repeats itself do not count. Ties go to the first in the table.
    """
    at_peak = {name: min(float(values[peak]), MAX_IMPROBABILITY) for name, values in channels.items()}
    certain = [name for name, value in at_peak.items() if value >= _TIE_SHARE * max(at_peak.values())]

    def total(name: str) -> float:
        values = channels[name][rows]
        is_active = _without_echo(values >= _MIN_IMPROBABILITY, _DETECTORS_BY_NAME[name].echo_rows)
        return float(np.minimum(values, MAX_IMPROBABILITY)[is_active].sum())

    totals = {name: total(name) for name in certain}
    return next(name for name in certain if totals[name] >= _TIE_SHARE * max(totals.values()))


def _make_anomaly(
    series: Series, forecast: Forecast, rows: tuple[int, int, int], score: float, channel: str
) -> Anomaly:
    """An event with the rows (first, last, peak)."""
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
        channel=channel,
    )
