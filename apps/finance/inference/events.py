"""From scores to events: what begins one, how long it lasts, and which detector found it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from apps.finance.inference.detectors import DETECTORS
from apps.finance.inference.scoring import Calibration
from apps.finance.types import Anomaly, Direction, Floats, Forecast, Series

Mask = NDArray[np.bool_]

_RELEASE = 0.7
"""An event goes on while the score is above this share of the threshold."""
_NEAR = 12
"""Events with at most so many ordinary rows between them are one."""


def detections(scores: Floats, *, threshold: float, quiet_rows: int, margin: float) -> Floats:
    """(N,) the scores at which an event is reported, 0 elsewhere. Causal.

    Rows are reported whose score reaches ``threshold``. Within ``quiet_rows`` after a reported row only one whose
    score is higher by more than ``margin`` is, so that each disturbance is reported once. Rows below the
    threshold begin no quiet time.
    """
    reported = np.zeros(len(scores))
    last_row, last_score = -quiet_rows - 1, 0.0
    for row in np.flatnonzero(scores >= threshold).tolist():
        value = float(scores[row])
        if row - last_row > quiet_rows or value > last_score + margin:
            reported[row] = value
            last_row, last_score = row, value
    return reported


def fresh(channels: Mapping[str, Floats], release: float) -> Mask:
    """(N,) where some channel's score is above ``release`` for a cause that is still there.

    ``channels`` are those of ``scoring.improbability``. A mean over w rows stays high for w - 1 rows after its cause
    has gone, and a change over w rows comes back after w: that much is taken off the end of each of its stretches above
    ``release``, and of two so near to each other only off the later one's.
    """
    found = np.zeros(len(next(iter(channels.values()))), bool)
    for name, values in channels.items():
        high, echo = np.flatnonzero(values >= 10 * release), DETECTORS[name].echo
        if not len(high):
            continue
        apart = np.flatnonzero(np.diff(high) > echo + 1)
        firsts, lasts = high[np.append(0, apart + 1)], high[np.append(apart, len(high) - 1)]
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
            found[first : max(last - echo, first) + 1] = True
    return found


def spans(reported: Floats, scores: Floats, lasting: Mask, *, threshold: float) -> list[tuple[int, int]]:
    """First and last rows of events, in order and apart.

    An event begins at the rows that are ``reported``. It ends with the last row of ``lasting`` before ``scores`` falls
    below 0.7 of ``threshold``. Events with at most 12 rows between them are one.
    """
    low = np.flatnonzero(scores < _RELEASE * threshold)
    found: list[tuple[int, int]] = []
    for row in np.flatnonzero(reported).tolist():
        after = int(np.searchsorted(low, row, "right"))
        end = int(low[after]) if after < len(low) else len(scores)
        last = row + int(np.flatnonzero(lasting[row:end])[-1]) if lasting[row:end].any() else row
        if found and row - found[-1][1] <= _NEAR + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((row, last))
    return found


def anomalies(
    series: Series,
    forecast: Forecast,
    scores: Floats,
    calibration: Calibration,
    channels: Mapping[str, Floats],
) -> tuple[Anomaly, ...]:
    """The events in a judged series; ``channels`` are those of ``scoring.improbability``, ``scores`` from them."""
    reported = detections(
        scores, threshold=calibration.threshold, quiet_rows=calibration.quiet_rows, margin=calibration.margin
    )
    lasting = fresh(channels, _RELEASE * calibration.threshold)
    found = spans(reported, scores, lasting, threshold=calibration.threshold)
    return tuple(_anomaly(series, forecast, scores, channels, first, last) for first, last in found)


def _anomaly(
    series: Series,
    forecast: Forecast,
    scores: Floats,
    channels: Mapping[str, Floats],
    first: int,
    last: int,
) -> Anomaly:
    peak = first + int(np.argmax(scores[first : last + 1]))
    channel = max(channels, key=lambda name: channels[name][peak])
    low, expected, high = forecast.quantiles[peak][[0, forecast.quantiles.shape[1] // 2, -1]]
    observed = float(series.target[peak])
    direction: Direction = "above" if observed > high else "below" if observed < low else "inside"
    return Anomaly(
        start_ns=int(series.times_ns[first]),
        end_ns=int(series.times_ns[last]),
        peak_ns=int(series.times_ns[peak]),
        score=round(float(scores[peak]), 4),
        observed=observed,
        expected=float(expected),
        low=float(low),
        high=float(high),
        direction=direction,
        channel=DETECTORS[channel].word,
    )
