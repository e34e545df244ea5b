"""A change over four rows that no single row shows."""

from __future__ import annotations

import numpy as np

from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.inference.detectors.trailing import change
from apps.finance.types import Floats

_ROWS = 4


def move(forecasted: ForecastedSeries, memory: int) -> Floats:
    """(N,) the absolute change from four rows before, in typical changes from row to row."""
    ratio: Floats = np.abs(change(forecasted.series.target, _ROWS)) / forecasted.usual_change
    return ratio


DETECTOR = RankedStatistic(channel="jump", statistic=move, rows=_ROWS, echo_rows=_ROWS)
