"""Changes larger than usual, for a while."""

from __future__ import annotations

from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.inference.detectors.trailing import trailing_mean
from apps.finance.types import Floats

_ROWS = 48


def high_volatility(one: ForecastedSeries, memory: int) -> Floats:
    """(N,) the mean of the last 48 absolute changes, in usual changes."""
    over: Floats = trailing_mean(one.clipped_change, _ROWS) / one.usual_change
    return over


DETECTOR = RankedStatistic(word="high_volatility", statistic=high_volatility, rows=_ROWS, echo=_ROWS - 1)
