"""A change over four rows, which no single row of them shows."""

from __future__ import annotations

import numpy as np

from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.inference.detectors.trailing import change
from apps.finance.types import Floats

_ROWS = 4


def move(one: ForecastedSeries, memory: int) -> Floats:
    """(N,) the absolute change from four rows before, in usual changes from row to row."""
    over: Floats = np.abs(change(one.series.target, _ROWS)) / one.usual_change
    return over


DETECTOR = RankedStatistic(word="jump", statistic=move, rows=_ROWS, echo=_ROWS)
