"""A sudden change from the row before."""

from __future__ import annotations

import numpy as np

from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.inference.detectors.trailing import trailing_mean
from apps.finance.types import Floats

_RECENT_ROWS = 100


def jump(forecasted: ForecastedSeries, memory: int) -> Floats:
    """(N,) the absolute change from the row before, over the mean of the last 100 changes."""
    recent = np.concatenate([[np.nan], trailing_mean(forecasted.clipped_change, _RECENT_ROWS)[:-1]])
    ratio: Floats = forecasted.absolute_change / np.maximum(recent, 0.2 * forecasted.usual_change)
    return ratio


DETECTOR = RankedStatistic(channel="jump", statistic=jump)
