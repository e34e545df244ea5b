"""Changes smaller than usual: a halt, a feed that stands still."""

from __future__ import annotations

import numpy as np

from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.inference.detectors.trailing import BLOCK, blocks, past, trailing_mean
from apps.finance.types import Floats

_ROWS = 12
_STILL = 0.02


def low_volatility(one: ForecastedSeries, memory: int) -> Floats:
    """(N,) the negative logarithm of the mean of the last 12 absolute changes, in usual changes.

    NaN where the series stands still every now and then: where it did so in more than a twentieth of the past.
    """
    calm = -np.log(trailing_mean(one.clipped_change / one.usual_change, _ROWS) + _STILL)
    result = np.full(len(calm), np.nan)
    for start in blocks(one.first, len(calm)):
        before = calm[past(start, memory)]
        before = before[np.isfinite(before)]
        if len(before) and np.mean(before > -np.log(1.05 * _STILL)) <= 0.05:
            result[start : start + BLOCK] = calm[start : start + BLOCK]
    return result


DETECTOR = RankedStatistic(word="low_volatility", statistic=low_volatility, rows=_ROWS)
