"""A level that the series has not had."""

from __future__ import annotations

import numpy as np

from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.inference.detectors.trailing import BLOCK, blocks, past, trailing_mean
from apps.finance.types import Floats

_ROWS = 8


def level(one: ForecastedSeries, memory: int) -> Floats:
    """(N,) how far the mean of the last 8 rows lies outside the middle 98 % of earlier such means, in their spreads."""
    means = trailing_mean(one.series.target, _ROWS)
    result = np.full(len(means), np.nan)
    for start in blocks(one.first, len(means)):
        before = means[past(start, memory)]
        before = before[np.isfinite(before)]
        if len(before) < 100:
            continue
        low, middle, high = np.quantile(before, [0.01, 0.5, 0.99])
        spread = max(high - low, 1e-3 * abs(middle), 1e-9)
        now = means[start : start + BLOCK]
        result[start : start + BLOCK] = np.maximum(low - now, now - high) / spread
    return result


# That a series stays where it has gone is a state and no disturbance, however long its past has not been there.
DETECTOR = RankedStatistic(word="level", statistic=level, rows=_ROWS, echo=_ROWS - 1, holds=48)
