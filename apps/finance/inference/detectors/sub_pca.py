"""A course over 32 rows that is no mixture of the courses before it: principal components of sub-sequences."""

from __future__ import annotations

import numpy as np

from apps.finance.datasets.windows import last_seen
from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.types import Floats

_ROWS = 32
_CHUNK = 512
_VARIANCE = 0.9
_MIN_ROWS = 4 * _ROWS


def sub_pca(one: ForecastedSeries, memory: int) -> Floats:
    """(N,) how far the last 32 rows lie off the principal components of such parts of the past, in usual distances.

    The Q statistic (Jackson and Mudholkar, 1979) of sub-sequences (Sub-PCA in TSB-AD; Liu and Paparrizos, NeurIPS
    2024): the components hold 90 % of the variance of up to ``memory`` parts that ended before, and are renewed every
    512 rows.
    """
    values = last_seen(one.series.target)
    length, result = len(values), np.full(len(values), np.nan)
    first = int(np.argmax(np.isfinite(values)))
    if length - first < _MIN_ROWS + _ROWS:
        return result
    parts = np.lib.stride_tricks.sliding_window_view(values, _ROWS)
    begin = first + _MIN_ROWS
    edges = [begin, *(edge for edge in (2 * begin, 4 * begin) if edge < _CHUNK)]
    edges += list(range((max(edges[-1], 1) // _CHUNK + 1) * _CHUNK, length, _CHUNK))
    for start, end in zip(edges, [*edges[1:], length], strict=True):
        past = parts[max(first, start - _ROWS - memory) : start - _ROWS + 1]
        middle = past.mean(axis=0)
        centred = past - middle
        variances, axes = np.linalg.eigh(centred.T @ centred / len(past))
        share = np.cumsum(variances[::-1]) / max(float(variances.sum()), 1e-300)
        kept = axes[:, ::-1][:, : int(np.searchsorted(share, _VARIANCE)) + 1]

        def distance(these: Floats, kept: Floats = kept, middle: Floats = middle) -> Floats:
            away = these - middle
            squares = np.square(away).sum(axis=1) - np.square(away @ kept).sum(axis=1)
            root: Floats = np.sqrt(np.maximum(squares, 0) / _ROWS)
            return root

        usual = float(distance(past).mean())
        scale = max(usual, 1e-4 * float(np.abs(past).mean()), 1e-12)
        result[start:end] = distance(parts[start - _ROWS + 1 : end - _ROWS + 1]) / scale
    return result


DETECTOR = RankedStatistic(word="shape", statistic=sub_pca, rows=_ROWS, echo=_ROWS - 1)
