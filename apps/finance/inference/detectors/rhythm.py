"""A deviation from a periodic pattern: the day, the week, or the series' own period."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from apps.finance.datasets.windows import same_time_before
from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.inference.detectors.trailing import BLOCK, block_starts, reference_rows, trailing_mean
from apps.finance.types import DAY_NS, WEEK_NS, Floats

_ROWS = 12
_MAX_DEVIATION_SHARE = 0.4
_PERIODS, _UPDATE_ROWS = 3, 1024
_MIN_PERIOD = 8


def rhythm(forecasted: ForecastedSeries, memory: int) -> Floats:
    """(N,) the mean deviation of the last 12 rows from the same time in earlier periods, in units of typical such
    deviations.

    Of three patterns (the last four days, the last two weeks, and three of the series' own periods) the one that
    predicted the past best is used. NaN if none predicts well: if typical deviations from it are more than 0.4 times
    those from the median.
    """
    series = forecasted.series
    deviations = [
        forecasted.extend_carried(f"departure {n}", rows) for n, rows in enumerate(_deviations(forecasted, memory))
    ]
    means = [np.abs(trailing_mean(deviation, _ROWS)) for deviation in deviations]
    result = np.full(len(series), np.nan)
    for start in block_starts(forecasted.first, len(series)):
        rows = reference_rows(start, memory)
        values = series.target[rows]
        if np.isfinite(values).sum() < 100:
            continue
        median = float(np.nanmedian(values))
        spread = float(np.nanmean(np.abs(values - median)))
        typical = [_typical_deviation(mean[rows]) for mean in means]
        best = int(np.argmin(typical))
        if typical[best] > _MAX_DEVIATION_SHARE * spread:
            continue
        scale = max(typical[best], 1e-4 * abs(median), 1e-9)
        result[start : start + BLOCK] = means[best][start : start + BLOCK] / scale
    return result


def _typical_deviation(deviations: Floats) -> float:
    """The mean of the finite deviations, infinite if there are fewer than 100."""
    deviations = deviations[np.isfinite(deviations)]
    return float(deviations.mean()) if len(deviations) >= 100 else np.inf


def _deviations(forecasted: ForecastedSeries, memory: int) -> Iterator[Floats]:
    """(N - first,) per pattern: the values minus the pattern's prediction; NaN where the pattern has too little
    history."""
    values, history = forecasted.series.target, forecasted.history or forecasted.series
    first = forecasted.first + len(history) - len(values)
    for lag, count in ((DAY_NS, 4), (WEEK_NS, 2)):
        predicted, known = same_time_before(history, horizon=1, lag_ns=lag, count=count, first=first)
        yield np.where(known >= 0.75, values[forecasted.first :] - predicted, np.nan)
    yield (values - _periods_before(values, memory, forecasted.first))[forecasted.first :]


def _periods_before(values: Floats, memory: int, first: int) -> Floats:
    """(N,) the median of the values one to three periods earlier; the period comes from the past's autocorrelation.

    Only rows from ``first`` on are guaranteed to be filled.
    """
    predicted = np.full(len(values), np.nan)
    smooth = trailing_mean(values, 3)
    for start in block_starts(max(first, _UPDATE_ROWS), len(values), _UPDATE_ROWS):
        period = own_period(values[max(0, start - memory) : start])
        if period is None:
            continue
        rows = np.arange(start, min(start + _UPDATE_ROWS, len(values)))
        # The trailing mean over three rows is centred on its middle row, hence + 1.
        earlier = rows - period * np.arange(1, _PERIODS + 1)[:, None] + 1
        earlier = earlier[:, earlier.min(axis=0) >= 0] if (earlier < 0).any() else earlier
        if earlier.shape[1] == len(rows):
            predicted[rows] = np.median(smooth[earlier], axis=0)
    return predicted


def own_period(values: Floats) -> int | None:
    """The period in rows of the strongest autocorrelation peak, from 8 rows to a third of the length; None if there is
    none.

    The autocorrelation comes from the power spectrum (Wiener-Khinchin theorem). Peaks below 0.3 are ignored.
    """
    filled = np.where(np.isfinite(values), values, np.nanmedian(values)) if np.isfinite(values).any() else values
    if len(filled) < 4 * _MIN_PERIOD or not np.isfinite(filled).all():
        return None
    low, high = np.quantile(filled, [0.01, 0.99])
    centred = np.clip(filled, low, high)
    centred = centred - centred.mean()
    size = 1 << (2 * len(centred) - 1).bit_length()
    power = np.abs(np.fft.rfft(centred, size)) ** 2
    correlation = np.fft.irfft(power)[: len(centred) // _PERIODS]
    if len(correlation) <= _MIN_PERIOD + 1 or correlation[0] <= 0:
        return None
    correlation = correlation / correlation[0] / (1 - np.arange(len(correlation)) / len(centred))
    inner = correlation[_MIN_PERIOD:-1]
    peaks = np.flatnonzero((inner > correlation[_MIN_PERIOD - 1 : -2]) & (inner >= correlation[_MIN_PERIOD + 1 :]))
    if not len(peaks) or inner[peaks].max() < 0.3:
        return None
    # Among the period and its multiples, take the first that is about as strong.
    strong = peaks[inner[peaks] > 0.95 * inner[peaks].max()]
    return int(strong[0]) + _MIN_PERIOD


DETECTOR = RankedStatistic(channel="rhythm", statistic=rhythm, rows=_ROWS, echo_rows=_ROWS - 1)
