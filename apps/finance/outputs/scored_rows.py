"""What a case's picture and files are made from when somebody asks for them: the rows with their scores, exactly."""

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
    """The detections as NumPy's archive, of their forecasts the lowest, the middle and the highest level.

    ``name`` is the file's; ``several`` says whether it names several series.
    """
    arrays: dict[str, Any] = {}
    for number, one in enumerate(detections):
        quantiles = one.forecast.quantiles
        per_row = (
            one.series.times_ns,
            one.series.target,
            quantiles[:, [0, quantiles.shape[1] // 2, -1]],
            one.scores,
            one.thresholds,
        )
        arrays |= {f"{number} {part}": array for part, array in zip(_PER_ROW, per_row, strict=True)}
    parts = [
        {
            "name": one.series.name,
            "column": one.series.column,
            "interval_ns": one.series.interval_ns,
            "levels": [one.forecast.levels[0], 0.5, one.forecast.levels[-1]],
            "anomalies": [asdict(anomaly) for anomaly in one.anomalies],
        }
        for one in detections
    ]
    document = json.dumps({"name": name, "several": several, "parts": parts})
    content = io.BytesIO()
    np.savez(content, document=np.frombuffer(document.encode(), np.uint8), **arrays)
    return content.getvalue()


def read_scored_rows(source: bytes) -> tuple[list[Detection], str, bool]:
    """What ``scored_rows`` was given."""
    with np.load(io.BytesIO(source), allow_pickle=False) as arrays:
        document = json.loads(arrays["document"].tobytes())
        found = []
        for number, part in enumerate(document["parts"]):
            times, values, band, scores, thresholds = (arrays[f"{number} {name}"] for name in _PER_ROW)
            anomalies = tuple(Anomaly(**{**one, "columns": tuple(one["columns"])}) for one in part["anomalies"])
            found.append(
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
    return found, document["name"], document["several"]
