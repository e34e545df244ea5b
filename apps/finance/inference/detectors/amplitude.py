"""How far a value, and the mean of many, lie from where the series began: the amplitude that an embedding loses.

The two scores that PAI (Zhang et al., arXiv 2606.08935, 2026) adds to those of a representation such as PaAno's: each
patch is normalised there, so that its level and spread are gone. Of that paper its abstract was at hand; how the scores
are put together is this project's: as those of all detectors, by the root mean square of -log10 p.
"""

from __future__ import annotations

import numpy as np

from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.detectors.paano import PATCH, TRAINING_ROWS
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.inference.detectors.trailing import trailing_mean
from apps.finance.types import Floats


def deviation(one: ForecastedSeries, memory: int) -> Floats:
    """(N,) the absolute deviation from the median of the first 600 rows, over their median absolute deviation."""
    return _from_the_beginning(one.series.target, one.series.target)


def mean_shift(one: ForecastedSeries, memory: int) -> Floats:
    """(N,) the same of the mean of the last 64 rows."""
    return _from_the_beginning(one.series.target, trailing_mean(one.series.target, PATCH))


def _from_the_beginning(values: Floats, statistic: Floats) -> Floats:
    """(N,) how far a statistic lies from the median of the rows that train; NaN in these rows."""
    training = values[:TRAINING_ROWS][np.isfinite(values[:TRAINING_ROWS])]
    if not len(training):
        return np.full(len(values), np.nan)
    median = float(np.median(training))
    spread = float(np.median(np.abs(training - median)))
    away: Floats = np.abs(statistic - median) / max(spread, 1e-3 * abs(median), 1e-9)
    away[:TRAINING_ROWS] = np.nan
    return away


DEVIATION = RankedStatistic(word="deviation", statistic=deviation)
MEAN_SHIFT = RankedStatistic(word="mean_shift", statistic=mean_shift, rows=PATCH, echo=PATCH - 1)
