"""The last rows as no rows before them: the distance to their nearest neighbour in the past, in running ranges."""

from __future__ import annotations

import numpy as np

from apps.finance.datasets.windows import last_seen
from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.inference.detectors.trailing import running_range
from apps.finance.types import Floats

_ROWS = 4
_CHUNK = 512
_LEAST_ROWS = 64


def nearest(one: ForecastedSeries, memory: int) -> Floats:
    """(N,) the distance of the last 4 values to the nearest 4 of up to ``memory`` rows before, over the running range.

    The left matrix profile (Yeh et al., ICDM 2016) without normalisation of each part, so that a usual course at a
    level that the series has not had counts as new. Sequences that share a row with the last one are no neighbours.
    """
    from scipy.spatial import cKDTree  # which takes longer to import than a short series to judge

    values = last_seen(one.series.target)
    length, result = len(values), np.full(len(values), np.nan)
    if length < _LEAST_ROWS + 2 * _ROWS:
        return result
    first = int(np.argmax(np.isfinite(values)))
    vectors = np.lib.stride_tricks.sliding_window_view(values, _ROWS)  # vector k holds rows k to k + 3
    distance = np.full(len(vectors), np.nan)
    for start in range(first, len(vectors), _CHUNK):
        end = min(start + _CHUNK, len(vectors))
        here = vectors[start:end]
        best = np.full(end - start, np.inf)
        old = vectors[max(first, start - memory) : start]
        if len(old) > _ROWS:
            best[_ROWS:], _ = cKDTree(old).query(here[_ROWS:])
            # The first rows of a chunk overlap with the end of what came before it.
            best[:_ROWS], _ = cKDTree(old[: 1 - _ROWS]).query(here[:_ROWS])
        inside = np.square(here[:, None] - here[None]).sum(axis=2)
        inside[np.arange(len(here))[:, None] - np.arange(len(here)) < _ROWS] = np.inf
        distance[start:end] = np.minimum(best, np.sqrt(inside.min(axis=1)))
    distance[: first + _LEAST_ROWS] = np.nan
    result[_ROWS - 1 :] = distance / np.sqrt(_ROWS)
    low, high = running_range(values, memory)
    return np.where(np.isfinite(result), result / np.maximum(high - low, 1e-9), np.nan)


DETECTOR = RankedStatistic(word="discord", statistic=nearest, rows=_ROWS, echo=_ROWS - 1)
