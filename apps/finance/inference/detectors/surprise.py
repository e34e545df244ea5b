"""A single value that deviates from its forecast."""

from __future__ import annotations

import numpy as np

from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.types import Floats


def surprise(forecasted: ForecastedSeries, memory: int) -> Floats:
    """(N,) the deviation of the value from its latest forecast, in standard deviations."""
    return np.abs(forecasted.forecast.surprise[:, 0])


DETECTOR = RankedStatistic(channel="surprise", statistic=surprise)
