"""Changes that are larger than usual for a while."""

from __future__ import annotations

from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.inference.detectors.trailing import trailing_mean
from apps.finance.types import Floats

_ROWS = 48


def high_volatility(forecasted: ForecastedSeries, memory: int) -> Floats:
    """(N,) the mean of the last 48 absolute changes, in typical changes."""
    ratio: Floats = trailing_mean(forecasted.clipped_change, _ROWS) / forecasted.usual_change
    return ratio


DETECTOR = RankedStatistic(channel="high_volatility", statistic=high_volatility, rows=_ROWS, echo_rows=_ROWS - 1)
