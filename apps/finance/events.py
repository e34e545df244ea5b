"""From scores to events: what begins one, how long it lasts, and what is merged. Causal throughout."""

from __future__ import annotations

import numpy as np

from apps.finance.scoring import Calibration
from apps.finance.types import Anomaly, Direction, Floats, Forecast, Series

_RELEASE = 0.7
"""An event goes on while the score is above this share of the threshold."""
_FLOOR = 0.1
_YOUNG = 0.04
"""In a young series the quiet time is this share of the rows so far."""


def detections(scores: Floats, *, quiet_rows: int, margin: float) -> Floats:
    """(N,) the scores at which a detector speaks up, 0 elsewhere.

    Within ``quiet_rows`` (fewer in a young series) after a row that spoke, only a row whose score is higher by more
    than ``margin`` speaks. A threshold on the result counts each disturbance about once, whatever the threshold is.
    """
    spoken = np.zeros(len(scores))
    last_row, last_score = -quiet_rows - 1, 0.0
    for row in np.flatnonzero(scores > _FLOOR).tolist():
        value = float(scores[row])
        if row - last_row > min(quiet_rows, _YOUNG * row) or value > last_score + margin:
            spoken[row] = value
            last_row, last_score = row, value
    return spoken


def spans(scores: Floats, spoken: Floats, *, threshold: float, quiet_rows: int) -> list[tuple[int, int]]:
    """First and last rows of events, in order and apart.

    An event begins where ``spoken`` reaches ``threshold`` and lasts while ``scores`` stays above 0.7 of it; events
    less than ``quiet_rows`` apart are one.
    """
    high = scores >= _RELEASE * threshold
    found: list[tuple[int, int]] = []
    for row in np.flatnonzero(spoken >= threshold).tolist():
        quiet = np.flatnonzero(~high[row:])
        end = row + int(quiet[0]) - 1 if len(quiet) else len(scores) - 1
        end = max(end, row)
        if found and row - found[-1][1] <= quiet_rows:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((row, end))
    return found


def anomalies(series: Series, forecast: Forecast, scores: Floats, calibration: Calibration) -> tuple[Anomaly, ...]:
    """The events in a judged series."""
    spoken = detections(scores, quiet_rows=calibration.quiet_rows, margin=calibration.margin)
    found = spans(scores, spoken, threshold=calibration.threshold, quiet_rows=calibration.quiet_rows)
    return tuple(_anomaly(series, forecast, scores, first, last) for first, last in found)


def _anomaly(series: Series, forecast: Forecast, scores: Floats, first: int, last: int) -> Anomaly:
    peak = first + int(np.argmax(scores[first : last + 1]))
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
    )
