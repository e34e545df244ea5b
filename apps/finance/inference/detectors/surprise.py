"""A single value off its forecast."""

from __future__ import annotations

import numpy as np

from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.types import Floats


def surprise(one: ForecastedSeries, memory: int) -> Floats:
    """(N,) how many standard deviations the value is off the forecast that was made last."""
    return np.abs(one.forecast.surprise[:, 0])


DETECTOR = RankedStatistic(word="surprise", statistic=surprise)
