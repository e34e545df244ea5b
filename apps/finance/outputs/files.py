"""A scored series as result.json, as the viewer's series.json, and as scores.csv in NAB's detector layout."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.finance.datasets.labels import window_rows
from apps.finance.types import SECOND_NS, Anomaly, Detection, Floats, Series, Window, iso_utc

if TYPE_CHECKING:
    from apps.finance.schemas import (
        FinanceEvent,
        FinanceResult,
        FinanceScored,
        FinanceTrueWindow,
    )

MAX_POINTS = 50_000
_ROWS_PER_PART = 10_000
SCORE = (
    "weighted root mean square of -log10 of the detectors' tail probabilities for a row, over 5, and at least "
    "0.12 times that of low_volatility; it ranks rows and is not a probability; the forecast gives the band, and "
    "contributes to the score only if the network takes covariates"
)


def result(
    detection: Detection, *, model: str, notes: Sequence[str] = (), truth: Sequence[Window] = ()
) -> FinanceResult:
    """The content of result.json: the events, and what was scored; for a synthetic series also its labelled windows."""
    series, scored = detection.series, series_entry(detection)
    content: FinanceResult = {
        "events": [event_entry(anomaly) for anomaly in detection.anomalies],
        "series": {
            "name": scored["name"],
            "rows": scored["rows"],
            "missing": scored["missing"],
            "start": scored["start"],
            "end": scored["end"],
            "threshold_at_the_end": scored["threshold_at_the_end"],
            "column": series.column,
            "columns": list(series.values),
            "interval_s": series.interval_ns / 1e9,
            "notes": [*notes, *series.notes],
        },
        "threshold": round(detection.threshold, 4),
        "score": SCORE,
        "band": outer_levels(detection),
        "model": model,
    }
    if truth:
        content["synthetic_truth"] = [_window_entry(window) for window in truth]
    return content


def series_entry(detection: Detection) -> FinanceScored:
    """Facts about a series: its name, its rows, its time range, and its last threshold."""
    series = detection.series
    return {
        "name": series.name,
        "rows": len(series),
        "missing": int((~np.isfinite(series.target)).sum()),
        "start": iso_utc(int(series.times_ns[0])),
        "end": iso_utc(int(series.times_ns[-1])),
        "threshold_at_the_end": round(float(detection.thresholds[-1]), 4),
    }


def outer_levels(detection: Detection) -> list[float]:
    """The quantile levels of the lower and upper end of the forecast band."""
    return [detection.forecast.levels[0], detection.forecast.levels[-1]]


def event_entry(anomaly: Anomaly) -> FinanceEvent:
    """An event: the observed value as read, the forecast rounded to a ten-thousandth of its band."""
    digits = _decimals(anomaly.low, anomaly.high)
    event: FinanceEvent = {
        "start": iso_utc(anomaly.start_ns),
        "end": iso_utc(anomaly.end_ns),
        "peak": iso_utc(anomaly.peak_ns),
        "score": anomaly.score,
        "observed": _number(anomaly.observed),
        "expected": _number(anomaly.expected, digits),
        "low": _number(anomaly.low, digits),
        "high": _number(anomaly.high, digits),
        "direction": anomaly.direction,
        "channel": anomaly.channel,
        "size": anomaly.size,
        "deviations": anomaly.deviations,
        "reason": anomaly.reason,
    }
    if anomaly.since_ns is not None:
        event["since"] = iso_utc(anomaly.since_ns)
    if anomaly.columns:
        event["columns"] = list(anomaly.columns)
    if anomaly.note:
        event["note"] = anomaly.note
    return event


def series_json(detection: Detection) -> bytes:
    """The viewer's drawing; see ``drawing``."""
    return json.dumps(drawing(detection, MAX_POINTS), separators=(",", ":"), allow_nan=False).encode()


def drawing(detection: Detection, max_rows: int) -> dict[str, Any]:
    """Times (seconds since 1970), values, forecast band and scores by row; null where missing.

    A series of more than ``max_rows`` rows is thinned: of every few rows, the one with the highest score is kept.
    """
    series, quantiles = detection.series, detection.forecast.quantiles
    rows = _thinned_rows(detection.scores, max_rows)
    median_column = quantiles.shape[1] // 2
    widths = quantiles[rows, -1] - quantiles[rows, 0]
    widths = widths[np.isfinite(widths)]
    digits = _decimals(0.0, float(np.median(widths))) if len(widths) else None
    return {
        "name": series.name,
        "column": series.column,
        "times": [time / 1e9 for time in series.times_ns[rows].tolist()],
        "values": [_number(value) for value in series.target[rows].tolist()],
        **{
            name: [_number(value, digits) for value in quantiles[rows, column].tolist()]
            for name, column in (("low", 0), ("median", median_column), ("high", -1))
        },
        "score": [round(score, 4) for score in detection.scores[rows].tolist()],
        "threshold": round(detection.threshold, 4),
        "thresholds": [round(threshold, 4) for threshold in detection.thresholds[rows].tolist()],
        "thinned": len(rows) < len(series),
    }


def scores_csv(detection: Detection) -> bytes:
    """Every row with its score, in NAB's layout of a detector's output; label is 1 in the detected events."""
    events = tuple(Window(start_ns=event.start_ns, end_ns=event.end_ns) for event in detection.anomalies)
    return detector_csv(detection.series, detection.scores, events).encode()


def detector_csv(series: Series, scores: Floats, windows: tuple[Window, ...] = ()) -> str:
    """NAB's layout of a detector's output: timestamp, value, anomaly_score, label."""
    label = np.zeros(len(series), np.int64)
    for first, last in window_rows(series.times_ns, windows).tolist():
        label[first : last + 1] = 1
    parts = ["timestamp,value,anomaly_score,label\n"]
    # In parts, because the cells of a long series take ten times the memory of their text.
    for begin in range(0, len(series), _ROWS_PER_PART):
        rows = slice(begin, begin + _ROWS_PER_PART)
        seconds, remainder = np.divmod(series.times_ns[rows], SECOND_NS)
        times = np.char.replace(np.datetime_as_string(seconds.astype("datetime64[s]")), "T", " ")
        fractions = [f".{nanoseconds:09d}".rstrip("0") if nanoseconds else "" for nanoseconds in remainder.tolist()]
        columns = (series.target[rows].tolist(), scores[rows].tolist(), label[rows].tolist())
        cells = zip(times.tolist(), fractions, *columns, strict=True)
        parts.append(
            "".join(f"{time}{part},{value!r},{score:.6g},{mark}\n" for time, part, value, score, mark in cells)
        )
    return "".join(parts)


def _window_entry(window: Window) -> FinanceTrueWindow:
    return {"start": iso_utc(window.start_ns), "end": iso_utc(window.end_ns), "kind": window.kind}


def _thinned_rows(scores: Floats, max_rows: int) -> np.ndarray:
    length = len(scores)
    if length <= max_rows:
        return np.arange(length)
    step = -(-length // max_rows)
    padded = np.pad(scores, (0, -length % step), constant_values=-1).reshape(-1, step)
    best: np.ndarray = np.arange(len(padded)) * step + padded.argmax(axis=1)
    return best


def _decimals(low: float, high: float) -> int | None:
    """The decimals that give a band about four and a half digits; further digits are float32 noise."""
    width = high - low
    return 4 - math.floor(math.log10(width)) if math.isfinite(width) and width > 0 else None


def _number(value: float, decimals: int | None = None) -> float | None:
    """The number, rounded to ``decimals`` if given; None if it is not finite."""
    if not math.isfinite(value):
        return None
    return value if decimals is None else round(value, decimals)
