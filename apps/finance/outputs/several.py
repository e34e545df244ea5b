"""Several scored series of one file as result.json, as the viewer's series.json, and as scores.csv."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from apps.finance.outputs.files import (
    MAX_POINTS,
    SCORE,
    drawing,
    event_entry,
    outer_levels,
    scores_csv,
    series_entry,
)
from apps.finance.types import Detection, iso_utc
from shared.text_cell import text_cell

if TYPE_CHECKING:
    from apps.finance.schemas import FinanceResult

_MIN_POINTS = 500


def several_result(
    detections: Sequence[Detection], *, name: str, series_column: str, notes: Sequence[str], model: str
) -> FinanceResult:
    """The content of result.json: events with the name of their series, and facts about all series together and each
    one.

    ``name`` is the file's, ``series_column`` the column that names its series.
    """
    first = detections[0].series
    return {
        "events": [
            {"series": detection.series.name, **event_entry(anomaly)}
            for detection in detections
            for anomaly in detection.anomalies
        ],
        "series": {
            "name": name,
            "series_column": series_column,
            "rows": sum(len(detection.series) for detection in detections),
            "missing": sum(series_entry(detection)["missing"] for detection in detections),
            "start": iso_utc(min(int(detection.series.times_ns[0]) for detection in detections)),
            "end": iso_utc(max(int(detection.series.times_ns[-1]) for detection in detections)),
            "column": first.column,
            "columns": list(first.values),
            "notes": list(notes),
        },
        "parts": [
            {
                **series_entry(detection),
                "interval_s": detection.series.interval_ns / 1e9,
                "events": len(detection.anomalies),
                "strongest": max((anomaly.score for anomaly in detection.anomalies), default=0.0),
            }
            for detection in detections
        ],
        "threshold": round(detections[0].threshold, 4),
        "score": SCORE,
        "band": outer_levels(detections[0]),
        "model": model,
    }


def several_series_json(detections: Sequence[Detection]) -> bytes:
    """The viewer's drawing of each series, in the order of the result's ``parts``, thinned to 50,000 rows in total."""
    content = {"parts": [drawing(detection, max_points(len(detections))) for detection in detections]}
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


def max_points(series: int) -> int:
    """The maximum number of rows of each series in the drawing before the viewer zooms in."""
    return max(_MIN_POINTS, MAX_POINTS // series)


def several_scores_csv(detections: Sequence[Detection]) -> bytes:
    """NAB's layout with the name of the series as the first column, made safe by ``text_cell``."""
    parts = [b"series,timestamp,value,anomaly_score,label\n"]
    for detection in detections:
        name = io.StringIO()
        csv.writer(name, lineterminator=",").writerow([text_cell(detection.series.name)])
        prefix, rows = name.getvalue().encode(), scores_csv(detection).partition(b"\n")[2]
        parts += [prefix, rows[:-1].replace(b"\n", b"\n" + prefix), b"\n"]
    return b"".join(parts)
