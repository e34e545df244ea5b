"""The scored rows from which a case's picture and files are made on request, without loss of precision."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from apps.finance.types import Anomaly, Detection, Forecast, Series

SOURCE = "scored.npz"
_PER_ROW = ("times", "values", "band", "scores", "thresholds")


def scored_rows(detections: Sequence[Detection], name: str, *, several: bool) -> bytes:
    """The detections as a NumPy archive; of each forecast only the lowest, the middle and the highest level are stored.

    ``name`` is the file's; ``several`` says whether its series are named by a column.
    """
    arrays: dict[str, Any] = {}
    for number, detection in enumerate(detections):
        quantiles = detection.forecast.quantiles
        per_row = (
            detection.series.times_ns,
            detection.series.target,
            quantiles[:, [0, quantiles.shape[1] // 2, -1]],
            detection.scores,
            detection.thresholds,
        )
        arrays |= {f"{number} {part}": array for part, array in zip(_PER_ROW, per_row, strict=True)}
    parts = [
        {
            "name": detection.series.name,
            "column": detection.series.column,
            "interval_ns": detection.series.interval_ns,
            "levels": [detection.forecast.levels[0], 0.5, detection.forecast.levels[-1]],
            "anomalies": [asdict(anomaly) for anomaly in detection.anomalies],
        }
        for detection in detections
    ]
    document = json.dumps({"name": name, "several": several, "parts": parts})
    content = io.BytesIO()
    np.savez(content, document=np.frombuffer(document.encode(), np.uint8), **arrays)
    return content.getvalue()


def read_scored_rows(source: bytes) -> tuple[list[Detection], str, bool]:
    """The detections, the name and ``several`` that ``scored_rows`` was given."""
    with np.load(io.BytesIO(source), allow_pickle=False) as arrays:
        document = json.loads(arrays["document"].tobytes())
        detections = []
        for number, part in enumerate(document["parts"]):
            times, values, band, scores, thresholds = (arrays[f"{number} {name}"] for name in _PER_ROW)
            anomalies = tuple(Anomaly(**{**event, "columns": tuple(event["columns"])}) for event in part["anomalies"])
            detections.append(
                Detection(
                    series=Series(
                        name=part["name"],
                        times_ns=times,
                        values={part["column"]: values},
                        column=part["column"],
                        interval_ns=part["interval_ns"],
                    ),
                    forecast=Forecast(levels=tuple(part["levels"]), quantiles=band, surprise=np.empty((len(times), 0))),
                    scores=scores,
                    thresholds=thresholds,
                    anomalies=anomalies,
                )
            )
    return detections, document["name"], document["several"]
