"""Another course than at the same time on other days."""

from __future__ import annotations

import numpy as np

from apps.finance.datasets.windows import same_time_before
from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.inference.detectors.trailing import BLOCK, past, trailing_mean
from apps.finance.types import Floats

_ROWS = 12
_RHYTHMIC = 0.4


def rhythm(one: ForecastedSeries, memory: int) -> Floats:
    """(N,) how far the last 12 rows' mean is from the same time on up to four days before, in usual such departures.

    NaN where the series has had no rhythm: where such departures were not much smaller than those from the median.
    """
    series = one.series
    usual, known = same_time_before(series, horizon=1)
    departure = np.where(known >= 0.75, series.target - usual, np.nan)
    mean = np.abs(trailing_mean(departure, _ROWS))
    result = np.full(len(mean), np.nan)
    for start in range(0, len(mean), BLOCK):
        rows = past(start, memory)
        before, values = mean[rows], series.target[rows]
        before = before[np.isfinite(before)]
        if len(before) < 100:
            continue
        middle = float(np.nanmedian(values))
        if before.mean() > _RHYTHMIC * np.nanmean(np.abs(values - middle)):
            continue
        scale = max(float(before.mean()), 1e-4 * abs(middle), 1e-9)
        result[start : start + BLOCK] = mean[start : start + BLOCK] / scale
    return result


DETECTOR = RankedStatistic(word="rhythm", statistic=rhythm, rows=_ROWS, echo=_ROWS - 1)
