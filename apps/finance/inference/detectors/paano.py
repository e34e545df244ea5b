"""A patch unlike those of the series' beginning, in an embedding learnt on them: PaAno."""

from __future__ import annotations

import numpy as np

from apps.finance.datasets.windows import last_seen
from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.types import Floats

TRAINING_ROWS = 600
PATCH = 64


def paano(one: ForecastedSeries, memory: int) -> Floats:
    """(N,) how far the last 64 rows lie from the memory bank of the first 600; see ``models.paano``.

    NaN in the rows that train, and in series too short to have others.
    """
    from apps.finance.models.paano import PaAno, patch_scores

    values = last_seen(one.series.target)
    result = np.full(len(values), np.nan)
    seen = np.flatnonzero(np.isfinite(values))
    first = int(seen[0]) if len(seen) else len(values)
    if len(values) - first > TRAINING_ROWS:
        result[first:] = patch_scores(values[first:], TRAINING_ROWS, PaAno(patch=PATCH))
    return result


DETECTOR = RankedStatistic(word="patch", statistic=paano, rows=PATCH, echo=PATCH - 1)
