"""Another course than one rhythm before: the day, the week, or the period that the series' own spectrum has."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from apps.finance.datasets.windows import same_time_before
from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.inference.detectors.trailing import BLOCK, blocks, past, trailing_mean
from apps.finance.types import DAY_NS, WEEK_NS, Floats

_ROWS = 12
_RHYTHMIC = 0.4
_PERIODS, _RENEWED = 3, 1024
_SHORTEST = 8


def rhythm(one: ForecastedSeries, memory: int) -> Floats:
    """(N,) how far the last 12 rows' mean is from the same time in earlier rhythms, in usual such departures.

    Of the rhythms (four days, two weeks, and three periods of the series' own spectrum) the one counts that has
    foretold the past best. NaN where none has: where such departures were not much smaller than those from the median.
    """
    series = one.series
    departures = [one.extended(f"departure {n}", rows) for n, rows in enumerate(_departures(one, memory))]
    means = [np.abs(trailing_mean(departure, _ROWS)) for departure in departures]
    result = np.full(len(series), np.nan)
    for start in blocks(one.first, len(series)):
        rows = past(start, memory)
        values = series.target[rows]
        if np.isfinite(values).sum() < 100:
            continue
        middle = float(np.nanmedian(values))
        spread = float(np.nanmean(np.abs(values - middle)))
        usual = [_usual(mean[rows]) for mean in means]
        best = int(np.argmin(usual))
        if usual[best] > _RHYTHMIC * spread:
            continue
        scale = max(usual[best], 1e-4 * abs(middle), 1e-9)
        result[start : start + BLOCK] = means[best][start : start + BLOCK] / scale
    return result


def _usual(before: Floats) -> float:
    before = before[np.isfinite(before)]
    return float(before.mean()) if len(before) >= 100 else np.inf


def _departures(one: ForecastedSeries, memory: int) -> Iterator[Floats]:
    """(N - first,) the values less what each rhythm makes of them; NaN where it has not been seen often enough."""
    values, history = one.series.target, one.history or one.series
    first = one.first + len(history) - len(values)
    for lag, count in ((DAY_NS, 4), (WEEK_NS, 2)):
        usual, known = same_time_before(history, horizon=1, lag_ns=lag, count=count, first=first)
        yield np.where(known >= 0.75, values[one.first :] - usual, np.nan)
    yield (values - _periods_before(values, memory, one.first))[one.first :]


def _periods_before(values: Floats, memory: int, first: int) -> Floats:
    """(N,) the median of the values one to three periods before; the period is found in the past's autocorrelation.

    Only rows from ``first`` on are sure to be there.
    """
    usual = np.full(len(values), np.nan)
    smooth = trailing_mean(values, 3)
    for start in blocks(max(first, _RENEWED), len(values), _RENEWED):
        period = own_period(values[max(0, start - memory) : start])
        if period is None:
            continue
        rows = np.arange(start, min(start + _RENEWED, len(values)))
        # The trailing mean over three rows is about the row in its middle.
        earlier = rows - period * np.arange(1, _PERIODS + 1)[:, None] + 1
        earlier = earlier[:, earlier.min(axis=0) >= 0] if (earlier < 0).any() else earlier
        if earlier.shape[1] == len(rows):
            usual[rows] = np.median(smooth[earlier], axis=0)
    return usual


def own_period(values: Floats) -> int | None:
    """The period in rows of the strongest peak of the autocorrelation from 8 rows to a third of the length; or None.

    By the Wiener-Khinchin theorem from the power spectrum. A peak below 0.3 is none.
    """
    filled = np.where(np.isfinite(values), values, np.nanmedian(values)) if np.isfinite(values).any() else values
    if len(filled) < 4 * _SHORTEST or not np.isfinite(filled).all():
        return None
    low, high = np.quantile(filled, [0.01, 0.99])
    centred = np.clip(filled, low, high)
    centred = centred - centred.mean()
    size = 1 << (2 * len(centred) - 1).bit_length()
    power = np.abs(np.fft.rfft(centred, size)) ** 2
    correlation = np.fft.irfft(power)[: len(centred) // _PERIODS]
    if len(correlation) <= _SHORTEST + 1 or correlation[0] <= 0:
        return None
    correlation = correlation / correlation[0] / (1 - np.arange(len(correlation)) / len(centred))
    inner = correlation[_SHORTEST:-1]
    peaks = np.flatnonzero((inner > correlation[_SHORTEST - 1 : -2]) & (inner >= correlation[_SHORTEST + 1 :]))
    if not len(peaks) or inner[peaks].max() < 0.3:
        return None
    # Of the period and its multiples the first that is about as strong.
    strong = peaks[inner[peaks] > 0.95 * inner[peaks].max()]
    return int(strong[0]) + _SHORTEST


DETECTOR = RankedStatistic(word="rhythm", statistic=rhythm, rows=_ROWS, echo=_ROWS - 1)
