"""A judged series as result.json, as the viewer's series.json, and as scores.csv in NAB's detector layout."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from apps.finance.data.nab import detector_csv
from apps.finance.types import Anomaly, Detection, Floats, iso_utc

_MOST_POINTS = 50_000


def result(detection: Detection, *, model: str) -> dict[str, Any]:
    """The content of result.json: the events, and what was judged."""
    series = detection.series
    return {
        "events": [_event(anomaly) for anomaly in detection.anomalies],
        "series": {
            "name": series.name,
            "column": series.column,
            "columns": list(series.values),
            "rows": len(series),
            "missing": int((~np.isfinite(series.target)).sum()),
            "start": iso_utc(int(series.times_ns[0])),
            "end": iso_utc(int(series.times_ns[-1])),
            "interval_s": series.interval_ns / 1e9,
            "notes": list(series.notes),
        },
        "threshold": round(detection.threshold, 4),
        "score": "-log10 of the smallest of seven tail probabilities, over 10: it ranks rows, and is no frequency",
        "band": [detection.forecast.levels[0], detection.forecast.levels[-1]],
        "model": model,
    }


def series_json(detection: Detection) -> bytes:
    """What the viewer draws: seconds since 1970, values, forecast band and scores by row; null where missing.

    A series of more than 50,000 rows is thinned to the rows that matter: of every few, the one with the highest score.
    """
    series, quantiles = detection.series, detection.forecast.quantiles
    rows = _thinned(detection.scores)
    middle = quantiles.shape[1] // 2
    content = {
        "column": series.column,
        "times": [time / 1e9 for time in series.times_ns[rows].tolist()],
        "values": _cells(series.target[rows]),
        "low": _cells(quantiles[rows, 0]),
        "median": _cells(quantiles[rows, middle]),
        "high": _cells(quantiles[rows, -1]),
        "score": [round(score, 4) for score in detection.scores[rows].tolist()],
        "threshold": round(detection.threshold, 4),
        "thinned": len(rows) < len(series),
    }
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


def scores_csv(detection: Detection) -> bytes:
    """Every row with its score, in NAB's layout of a detector's output; label is 1 in the events found."""
    from apps.finance.types import Window

    events = tuple(Window(start_ns=one.start_ns, end_ns=one.end_ns) for one in detection.anomalies)
    return detector_csv(detection.series, detection.scores, events).encode()


def _event(anomaly: Anomaly) -> dict[str, Any]:
    return {
        "start": iso_utc(anomaly.start_ns),
        "end": iso_utc(anomaly.end_ns),
        "peak": iso_utc(anomaly.peak_ns),
        "score": anomaly.score,
        "observed": _number(anomaly.observed),
        "expected": _number(anomaly.expected),
        "low": _number(anomaly.low),
        "high": _number(anomaly.high),
        "direction": anomaly.direction,
    }


def _thinned(scores: Floats) -> np.ndarray:
    length = len(scores)
    if length <= _MOST_POINTS:
        return np.arange(length)
    step = -(-length // _MOST_POINTS)
    padded = np.pad(scores, (0, -length % step), constant_values=-1).reshape(-1, step)
    best: np.ndarray = np.arange(len(padded)) * step + padded.argmax(axis=1)
    return best


def _cells(values: Floats) -> list[float | None]:
    return [_number(value) for value in values.tolist()]


def _number(value: float) -> float | None:
    """Seven significant digits; a digit more would only be the noise of the float32 within."""
    return float(f"{value:.7g}") if np.isfinite(value) else None
