"""The last rows as no rows before them: the distance to their nearest neighbour in the past, in running ranges."""

from __future__ import annotations

import numpy as np

from apps.finance.datasets.windows import last_seen
from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.inference.detectors.trailing import blocks, running_range
from apps.finance.types import Floats

_ROWS = 4
_CHUNK = 512
_MIN_ROWS = 64
_FEW = 1536
"""A chunk and up to so many vectors are compared one with another: scipy.spatial takes longer to import."""


def nearest(one: ForecastedSeries, memory: int) -> Floats:
    """(N,) the distance of the last 4 values to the nearest 4 of up to ``memory`` rows before, over the running range.

    The left matrix profile (Yeh et al., ICDM 2016) without normalisation of each part, so that a usual course at a
    level that the series has not had counts as new. Sequences that share a row with the last one are no neighbours.
    """
    values = last_seen(one.series.target)
    length, result = len(values), np.full(len(values), np.nan)
    if length < _MIN_ROWS + 2 * _ROWS:
        return result
    first = int(np.argmax(np.isfinite(values)))
    vectors = np.lib.stride_tricks.sliding_window_view(values, _ROWS)  # vector k holds rows k to k + 3
    distance = np.full(len(vectors), np.nan)
    wanted = max(first, one.first - _ROWS + 1)
    for edge in blocks(wanted, len(vectors), _CHUNK):
        start, end = max(edge, first), min(edge + _CHUNK, len(vectors))
        here, new = vectors[start:end], max(wanted - start, 0)
        best = np.full(end - start, np.inf)
        old = vectors[max(first, start - memory) : start]
        if len(old) > _ROWS:
            apart = max(new, _ROWS)
            best[apart:] = _to_nearest(here[apart:], old)
            # The first rows of a chunk overlap with the end of what came before it.
            best[new:_ROWS] = _to_nearest(here[new:_ROWS], old[: 1 - _ROWS])
        inside = _squared_distances(here[new:], here)
        inside[np.arange(new, len(here))[:, None] - np.arange(len(here)) < _ROWS] = np.inf
        distance[start + new : end] = np.minimum(best[new:], np.sqrt(inside.min(axis=1)))
    distance[: first + _MIN_ROWS] = np.nan
    result[_ROWS - 1 :] = distance / np.sqrt(_ROWS)
    low, high = running_range(values, memory)
    return np.where(np.isfinite(result), result / np.maximum(high - low, 1e-9), np.nan)


def _to_nearest(here: Floats, old: Floats) -> Floats:
    """(N,) the distances from vectors (N, 4) to the nearest of others (M, 4)."""
    if len(old) * len(here) <= _FEW * _CHUNK:
        return np.asarray(np.sqrt(_squared_distances(here, old).min(axis=1)))
    from scipy.spatial import cKDTree

    found: Floats = cKDTree(old).query(here)[0]
    return found


def _squared_distances(here: Floats, others: Floats) -> Floats:
    """(N, M) between vectors (N, 4) and others (M, 4); a column at a time, as a sum over four numbers is slow."""
    squares, apart = np.zeros((len(here), len(others))), np.empty((len(here), len(others)))
    for column in range(_ROWS):
        np.subtract(here[:, column, None], others[None, :, column], out=apart)
        squares += np.square(apart, out=apart)
    return squares


DETECTOR = RankedStatistic(word="discord", statistic=nearest, rows=_ROWS, echo=_ROWS - 1)
