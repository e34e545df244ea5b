"""How far a value, and a mean, lie from the beginning of the series: the amplitude that an embedding loses.

These are the two scores that PAI (Zhang et al., arXiv 2606.08935, 2026) adds to those of a representation such as
PaAno's, whose patches are normalised so that their level and spread are lost. Only that paper's abstract was available;
combining the scores is this project's choice: as for all detectors, by the root mean square of -log10 p.
"""

from __future__ import annotations

import numpy as np

from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.detectors.paano import PATCH, TRAINING_ROWS
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.inference.detectors.trailing import trailing_mean
from apps.finance.types import Floats


def deviation(forecasted: ForecastedSeries, memory: int) -> Floats:
    """(N,) the absolute deviation from the median of the first 600 rows, over their median absolute deviation."""
    return _deviation_from_start(forecasted.series.target, forecasted.series.target)


def mean_shift(forecasted: ForecastedSeries, memory: int) -> Floats:
    """(N,) the same for the mean of the last 64 rows."""
    return _deviation_from_start(forecasted.series.target, trailing_mean(forecasted.series.target, PATCH))


def _deviation_from_start(values: Floats, statistic: Floats) -> Floats:
    """(N,) the deviation of a statistic from the median of the training rows; NaN in these rows."""
    training = values[:TRAINING_ROWS][np.isfinite(values[:TRAINING_ROWS])]
    if not len(training):
        return np.full(len(values), np.nan)
    median = float(np.median(training))
    spread = float(np.median(np.abs(training - median)))
    deviations: Floats = np.abs(statistic - median) / max(spread, 1e-3 * abs(median), 1e-9)
    deviations[:TRAINING_ROWS] = np.nan
    return deviations


DEVIATION = RankedStatistic(channel="deviation", statistic=deviation)
MEAN_SHIFT = RankedStatistic(channel="mean_shift", statistic=mean_shift, rows=PATCH, echo_rows=PATCH - 1)
