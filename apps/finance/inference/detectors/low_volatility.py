"""Changes that are smaller than usual: a trading halt, a frozen feed."""

from __future__ import annotations

import numpy as np

from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.inference.detectors.trailing import BLOCK, block_starts, reference_rows, trailing_mean
from apps.finance.types import Floats

_ROWS = 12
_OFFSET = 0.02


def low_volatility(forecasted: ForecastedSeries, memory: int) -> Floats:
    """(N,) the negative logarithm of the mean of the last 12 absolute changes, in typical changes.

    NaN if the series is regularly constant: if more than a twentieth of the past was.
    """
    calm = -np.log(trailing_mean(forecasted.clipped_change / forecasted.usual_change, _ROWS) + _OFFSET)
    result = np.full(len(calm), np.nan)
    for start in block_starts(forecasted.first, len(calm)):
        earlier = calm[reference_rows(start, memory)]
        earlier = earlier[np.isfinite(earlier)]
        if len(earlier) and np.mean(earlier > -np.log(1.05 * _OFFSET)) <= 0.05:
            result[start : start + BLOCK] = calm[start : start + BLOCK]
    return result


DETECTOR = RankedStatistic(channel="low_volatility", statistic=low_volatility, rows=_ROWS)
