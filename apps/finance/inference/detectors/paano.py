"""A patch unlike those of the series' beginning, in an embedding learnt on them: PaAno."""

from __future__ import annotations

import numpy as np

from apps.finance.datasets.windows import last_seen
from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.types import Floats

_TRAINING_ROWS = 600
_PATCH = 64


def paano(one: ForecastedSeries, memory: int) -> Floats:
    """(N,) how far the last 64 rows lie from the memory bank of the first 600; see ``models.paano``.

    NaN in the rows that train, and in series too short to have others.
    """
    from apps.finance.models.paano import PaAno, patch_scores

    values = last_seen(one.series.target)
    result = np.full(len(values), np.nan)
    seen = np.flatnonzero(np.isfinite(values))
    first = int(seen[0]) if len(seen) else len(values)
    if len(values) - first > _TRAINING_ROWS:
        result[first:] = patch_scores(values[first:], _TRAINING_ROWS, PaAno(patch=_PATCH))
    return result


DETECTOR = RankedStatistic(word="patch", statistic=paano, rows=_PATCH, echo=_PATCH - 1)
