"""A patch unlike those at the beginning of the series, in an embedding learnt on them: PaAno."""

from __future__ import annotations

import numpy as np

from apps.finance.datasets.windows import last_seen
from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.types import Floats

TRAINING_ROWS = 600
PATCH = 64


def paano(forecasted: ForecastedSeries, memory: int) -> Floats:
    """(N,) the distance of the last 64 rows from the memory bank of the first 600; see ``models.paano``.

    NaN in the training rows, and everywhere if the series has no further rows.
    """
    from apps.finance.models.paano import PaAno, patch_scores

    values = last_seen(forecasted.series.target)
    result = np.full(len(values), np.nan)
    finite_rows = np.flatnonzero(np.isfinite(values))
    first = int(finite_rows[0]) if len(finite_rows) else len(values)
    if len(values) - first > TRAINING_ROWS:
        result[first:] = patch_scores(values[first:], TRAINING_ROWS, PaAno(patch=PATCH))
    return result


DETECTOR = RankedStatistic(channel="patch", statistic=paano, rows=PATCH, echo_rows=PATCH - 1)
