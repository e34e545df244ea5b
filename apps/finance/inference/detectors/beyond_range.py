"""A value outside the range of all earlier values."""

from __future__ import annotations

import numpy as np

from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.inference.detectors.trailing import running_range
from apps.finance.types import Floats

_MIN_ROWS = 64


def beyond_range(forecasted: ForecastedSeries, memory: int) -> Floats:
    """(N,) the distance beyond the minimum or maximum of up to ``memory`` earlier rows, over their range.

    Negative within the range; -1/2 in its middle.
    """
    values = forecasted.series.target
    low, high = running_range(values, memory)
    width = np.maximum(high - low, np.maximum(1e-3 * np.abs(high + low) / 2, 1e-9))
    result = np.maximum(low - values, values - high) / width
    result[:_MIN_ROWS] = np.nan
    return np.maximum(result, -0.5)


DETECTOR = RankedStatistic(channel="beyond_range", statistic=beyond_range)
