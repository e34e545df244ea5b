"""A sudden change from the row before."""

from __future__ import annotations

import numpy as np

from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.inference.detectors.trailing import trailing_mean
from apps.finance.types import Floats

_LATELY = 100


def jump(one: ForecastedSeries, memory: int) -> Floats:
    """(N,) the absolute change from the row before, over the mean of the last 100 changes."""
    lately = np.concatenate([[np.nan], trailing_mean(one.clipped_change, _LATELY)[:-1]])
    over: Floats = one.absolute_change / np.maximum(lately, 0.2 * one.usual_change)
    return over


DETECTOR = RankedStatistic(word="jump", statistic=jump)
