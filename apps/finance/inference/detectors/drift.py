"""Many values in a row on one side of their forecasts."""

from __future__ import annotations

import numpy as np

from apps.finance.inference.detectors.detector import HIGHEST, ForecastedSeries
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.inference.detectors.trailing import trailing_mean
from apps.finance.types import Floats

_ROWS = 48


def drift(one: ForecastedSeries, memory: int) -> Floats:
    """(N,) the absolute mean of the last 48 rows' departures from the forecast that was made first, in deviations."""
    far = np.clip(one.forecast.surprise[:, -1], -HIGHEST, HIGHEST)
    return np.abs(trailing_mean(far, _ROWS))


DETECTOR = RankedStatistic(word="drift", statistic=drift, rows=_ROWS, echo=_ROWS - 1)
