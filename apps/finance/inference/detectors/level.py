"""A level that the series has not had before."""

from __future__ import annotations

import numpy as np

from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.inference.detectors.trailing import BLOCK, block_starts, reference_rows, trailing_mean
from apps.finance.types import Floats

_ROWS = 8


def level(forecasted: ForecastedSeries, memory: int) -> Floats:
    """(N,) how far the mean of the last 8 rows lies outside the middle 98 % of earlier such means, over the width of
    that range."""
    means = trailing_mean(forecasted.series.target, _ROWS)
    result = np.full(len(means), np.nan)
    for start in block_starts(forecasted.first, len(means)):
        earlier = means[reference_rows(start, memory)]
        earlier = earlier[np.isfinite(earlier)]
        if len(earlier) < 100:
            continue
        low, median, high = np.quantile(earlier, [0.01, 0.5, 0.99])
        spread = max(high - low, 1e-3 * abs(median), 1e-9)
        current = means[start : start + BLOCK]
        result[start : start + BLOCK] = np.maximum(low - current, current - high) / spread
    return result


# Staying at a new level is a state and not a disturbance, however long the past has been elsewhere.
DETECTOR = RankedStatistic(channel="level", statistic=level, rows=_ROWS, echo_rows=_ROWS - 1, max_hold_rows=48)
