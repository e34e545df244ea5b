"""A long run of values on one side of their forecasts."""

from __future__ import annotations

import numpy as np

from apps.finance.inference.detectors.detector import MAX_CONTRIBUTION, ForecastedSeries
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.inference.detectors.trailing import trailing_mean
from apps.finance.types import Floats

_ROWS = 48


def drift(forecasted: ForecastedSeries, memory: int) -> Floats:
    """(N,) the absolute mean, over the last 48 rows, of the deviations from each row's earliest forecast, in standard
    deviations."""
    deviations = np.clip(forecasted.forecast.surprise[:, -1], -MAX_CONTRIBUTION, MAX_CONTRIBUTION)
    return np.abs(trailing_mean(deviations, _ROWS))


DETECTOR = RankedStatistic(channel="drift", statistic=drift, rows=_ROWS, echo_rows=_ROWS - 1)
