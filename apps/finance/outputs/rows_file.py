"""Every row of a long series, which the viewer loads when the user zooms in beyond the thinned rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from apps.finance.types import Detection

_MAX_ROWS = 500_000
"""Longer files, beyond 20 MB, are meant for the command line, where nobody zooms."""
ROWS = "rows.bin"


def has_rows_file(detections: Sequence[Detection], max_points: int) -> bool:
    """Whether there is a ``rows.bin``: if a series of more than ``max_points`` rows is thinned."""
    lengths = [len(detection.series) for detection in detections]
    return max(lengths) > max_points and sum(lengths) <= _MAX_ROWS


def rows_file(detections: Sequence[Detection]) -> bytes:
    """For each series of N rows: times (s since 1970), values and thresholds as float64 (N,), then low, median, high
    and score as float32 (N,), all little-endian; NaN where missing."""
    return b"".join(map(_rows, detections))


def _rows(detection: Detection) -> bytes:
    series, quantiles = detection.series, detection.forecast.quantiles
    wide = np.stack([series.times_ns / 1e9, series.target, detection.thresholds]).astype("<f8")
    band = quantiles[:, [0, quantiles.shape[1] // 2, -1]].T
    return wide.tobytes() + np.vstack([band, detection.scores]).astype("<f4").tobytes()
