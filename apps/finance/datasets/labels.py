"""Labelled anomalies as rows of their series."""

from __future__ import annotations

import numpy as np

from apps.finance.metrics.nab import Rows, probation
from apps.finance.types import LabelledSeries, Times, Window


def window_rows(times_ns: Times, windows: tuple[Window, ...]) -> Rows:
    """(W, 2) first and last row of each window, inclusive; if no row lies in a window, its last is before its first."""
    bounds = [
        (int(np.searchsorted(times_ns, window.start_ns)), int(np.searchsorted(times_ns, window.end_ns, "right")) - 1)
        for window in windows
    ]
    return np.asarray(bounds, np.int64).reshape(-1, 2)


def scored_windows(item: LabelledSeries, *, synthetic: bool) -> Rows:
    """(W, 2) the windows to score with: the labels themselves, or, for exact synthetic labels, windows in the style of
    NAB."""
    return benchmark_windows(item) if synthetic else window_rows(item.series.times_ns, item.windows)


def benchmark_windows(item: LabelledSeries) -> Rows:
    """(W, 2) windows of rows in the style of NAB's labels: a tenth of the series in total, around the anomalies'
    starts."""
    length, number = len(item.series), len(item.windows)
    if not number:
        return np.zeros((0, 2), np.int64)
    width = int(0.1 * length / number)
    bounds: list[tuple[int, int]] = []
    for first, last in window_rows(item.series.times_ns, item.windows).tolist():
        begin = max(first - width // 4, probation(length), bounds[-1][1] + 1 if bounds else 0)
        end = min(max(first + 3 * width // 4, min(last, first + width)), length - 1)
        if end > begin:
            bounds.append((begin, end))
    return np.asarray(bounds, np.int64).reshape(-1, 2)
