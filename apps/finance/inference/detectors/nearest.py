"""Four rows unlike any before: the distance to their nearest neighbour in the past, in units of the running range."""

from __future__ import annotations

import numpy as np

from apps.finance.datasets.windows import last_seen
from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.inference.detectors.trailing import block_starts, running_range
from apps.finance.types import Floats

_ROWS = 4
_CHUNK = 512
_MIN_ROWS = 64
_BRUTE_FORCE_VECTORS = 1536
"""Up to this many past vectors, a chunk is compared by brute force, because importing scipy.spatial takes longer."""


def nearest(forecasted: ForecastedSeries, memory: int) -> Floats:
    """(N,) the distance of the last 4 values to the nearest 4 among up to ``memory`` earlier rows, over the running
    range.

    The left matrix profile (Yeh et al., ICDM 2016) without normalising each subsequence, so that a familiar pattern at
    a new level counts as new. Subsequences that share a row with the last one are not neighbours.
    """
    values = last_seen(forecasted.series.target)
    length, result = len(values), np.full(len(values), np.nan)
    if length < _MIN_ROWS + _ROWS:
        return result
    first = int(np.argmax(np.isfinite(values)))
    vectors = np.lib.stride_tricks.sliding_window_view(values, _ROWS)  # vector k holds rows k to k + 3
    distance = np.full(len(vectors), np.nan)
    wanted = max(first, forecasted.first - _ROWS + 1)
    for edge in block_starts(wanted, len(vectors), _CHUNK):
        start, end = max(edge, first), min(edge + _CHUNK, len(vectors))
        chunk, new = vectors[start:end], max(wanted - start, 0)
        best = np.full(end - start, np.inf)
        past = vectors[max(first, start - memory) : start]
        if len(past) > _ROWS:
            separated = max(new, _ROWS)
            best[separated:] = _nearest_distances(chunk[separated:], past)
            # The first vectors of a chunk overlap with the end of the past.
            best[new:_ROWS] = _nearest_distances(chunk[new:_ROWS], past[: 1 - _ROWS])
        within_chunk = _squared_distances(chunk[new:], chunk)
        within_chunk[np.arange(new, len(chunk))[:, None] - np.arange(len(chunk)) < _ROWS] = np.inf
        distance[start + new : end] = np.minimum(best[new:], np.sqrt(within_chunk.min(axis=1)))
    distance[: first + _MIN_ROWS] = np.nan
    result[_ROWS - 1 :] = distance / np.sqrt(_ROWS)
    low, high = running_range(values, memory)
    return np.where(np.isfinite(result), result / np.maximum(high - low, 1e-9), np.nan)


def _nearest_distances(vectors: Floats, others: Floats) -> Floats:
    """(N,) the distances from vectors (N, 4) to the nearest of others (M, 4)."""
    if len(others) * len(vectors) <= _BRUTE_FORCE_VECTORS * _CHUNK:
        return np.asarray(np.sqrt(_squared_distances(vectors, others).min(axis=1)))
    from scipy.spatial import cKDTree

    distances: Floats = cKDTree(others).query(vectors)[0]
    return distances


def _squared_distances(vectors: Floats, others: Floats) -> Floats:
    """(N, M) between vectors (N, 4) and others (M, 4); one column at a time, because summing over an axis of four is
    slow."""
    squares, difference = np.zeros((len(vectors), len(others))), np.empty((len(vectors), len(others)))
    for column in range(_ROWS):
        np.subtract(vectors[:, column, None], others[None, :, column], out=difference)
        squares += np.square(difference, out=difference)
    return squares


DETECTOR = RankedStatistic(channel="discord", statistic=nearest, rows=_ROWS, echo_rows=_ROWS - 1)
