"""A pattern over 32 rows that earlier patterns cannot explain: principal components of subsequences."""

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


def sub_pca(forecasted: ForecastedSeries, memory: int) -> Floats:
    """(N,) the distance of the last 32 rows from the principal subspace of earlier subsequences, over the mean such
    distance.

    The Q statistic (Jackson and Mudholkar, 1979) of subsequences (Sub-PCA in TSB-AD; Liu and Paparrizos, NeurIPS 2024).
    The components hold 90 % of the variance of up to ``memory`` subsequences that ended earlier, and are updated every
    512 rows.
    """
    values = last_seen(forecasted.series.target)
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
        mean = past.mean(axis=0)
        centred = past - mean
        variances, axes = np.linalg.eigh(centred.T @ centred / len(past))
        share = np.cumsum(variances[::-1]) / max(float(variances.sum()), 1e-300)
        kept = axes[:, ::-1][:, : int(np.searchsorted(share, _VARIANCE)) + 1]

        def distance(subsequences: Floats, kept: Floats = kept, mean: Floats = mean) -> Floats:
            centred_rows = subsequences - mean
            squares = np.square(centred_rows).sum(axis=1) - np.square(centred_rows @ kept).sum(axis=1)
            root: Floats = np.sqrt(np.maximum(squares, 0) / _ROWS)
            return root

        typical = float(distance(past).mean())
        scale = max(typical, 1e-4 * float(np.abs(past).mean()), 1e-12)
        result[start:end] = distance(parts[start - _ROWS + 1 : end - _ROWS + 1]) / scale
    return result


DETECTOR = RankedStatistic(channel="shape", statistic=sub_pca, rows=_ROWS, echo_rows=_ROWS - 1)
