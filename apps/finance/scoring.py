"""From surprise to scores: how improbable each row is, given the forecasts and what the series has done before.

Several channels look at the surprise (the normal score of the observed value within its forecast): single rows, runs
in one direction, unrest, unusual calm; two more look at the values: a level that the series has not had, and a
departure from the same time on other days. Each statistic is given a tail
probability by its rank among the same series' earlier rows, continued beyond the largest of them by an exponential
tail in the logarithm (peaks over threshold; Siffer et al., KDD 2017), and mixed with the tail that the channel has on
synthetic normal series. A row's score is -log10 of its smallest tail probability over 10. Nothing looks ahead,
but for the usual distance of rows, which is that of the whole file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from apps.finance.data.windows import same_time_before
from apps.finance.types import Floats, Forecast, Series

CHANNELS = ("point", "far", "run", "unrest", "calm", "level", "rhythm")
_GRID = np.concatenate([np.linspace(0.0, 0.95, 20), 1 - np.geomspace(0.05, 1e-4, 30)[1:]])
"""The levels at which a channel's distribution on normal series is tabulated."""


_RHYTHMIC = 0.4
_LEAST_EXCESS = 0.1
"""No tail is taken to fall faster than about the normal distribution's does beyond its 98 % quantile."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What turns surprise into scores and events; found on synthetic series, kept in an artifact's manifest.

    ``prior`` has the quantiles of each channel's statistic on normal rows at the levels of a fixed grid; it counts as
    ``prior_rows`` earlier rows. ``penalty`` is taken off a channel's -log10 p. ``run``, ``unrest`` and ``level`` are
    the lengths of those channels in rows. ``quiet_rows`` is how long after a detection only a stronger one counts, by
    ``margin`` in score. ``threshold`` is the score from which a row begins an event.
    """

    prior: Mapping[str, list[float]] = field(default_factory=dict)
    penalty: Mapping[str, float] = field(default_factory=dict)
    prior_rows: float = 300.0
    tail: float = 0.02
    run: int = 12
    unrest: int = 36
    level: int = 8
    memory: int = 8000
    block: int = 64
    quiet_rows: int = 120
    margin: float = 0.05
    threshold: float = 0.4


def statistics(series: Series, forecast: Forecast, calibration: Calibration) -> dict[str, Floats]:
    """Each channel's statistic at each row, (N,), larger for more unusual; NaN where there is none yet."""
    surprise = forecast.surprise
    point = np.abs(surprise[:, 0])
    far = np.abs(surprise[:, -1])
    signed = _trailing_mean(np.clip(surprise[:, -1], -8, 8), calibration.run)
    unrest = _trailing_mean(np.minimum(np.abs(surprise[:, 0]), 8), calibration.unrest)
    return {
        "point": point,
        "far": far,
        "run": np.abs(signed),
        "unrest": unrest,
        "calm": -np.log(unrest + 0.02),
        "level": _unusual_level(series.target, calibration),
        "rhythm": _broken_rhythm(series, calibration),
    }


def improbability(series: Series, forecast: Forecast, calibration: Calibration) -> dict[str, Floats]:
    """-log10 of each channel's tail probability at each row, (N,); 0 where there is no forecast yet."""
    found = {}
    for name, values in statistics(series, forecast, calibration).items():
        found[name] = _tail(values, np.asarray(calibration.prior.get(name, ())), calibration)
    return found


def score(series: Series, forecast: Forecast, calibration: Calibration) -> Floats:
    """(N,) the score of each row in [0, 1]: -log10 of the smallest tail probability over 10."""
    return combine(improbability(series, forecast, calibration), calibration)


def combine(channels: Mapping[str, Floats], calibration: Calibration) -> Floats:
    """(N,) the score from each channel's -log10 p: the largest, less the channel's penalty, over 10."""
    strongest = np.max([channels[name] - calibration.penalty.get(name, 0.0) for name in CHANNELS], axis=0)
    return np.clip(strongest / 10, 0, 1)


def tabulate_prior(values: Floats) -> list[float]:
    """The quantiles of a statistic on normal rows, as ``Calibration.prior`` keeps them."""
    return [round(float(value), 5) for value in np.quantile(values[np.isfinite(values)], _GRID)]


def _trailing_mean(values: Floats, rows: int) -> Floats:
    """(N,) the mean of the last ``rows`` values that there are; NaN until half of them are there."""
    seen = np.isfinite(values)
    sums = np.concatenate([np.zeros(rows), np.cumsum(np.where(seen, values, 0))])
    counts = np.concatenate([np.zeros(rows), np.cumsum(seen)])
    number = counts[rows:] - counts[:-rows]
    return np.where(number >= rows / 2, (sums[rows:] - sums[:-rows]) / np.maximum(number, 1), np.nan)


def _unusual_level(values: Floats, calibration: Calibration) -> Floats:
    """(N,) how far the mean of the last rows lies outside the middle 98 % of earlier such means, in their spreads."""
    level = _trailing_mean(values, calibration.level)
    result = np.full(len(values), np.nan)
    for start in range(0, len(values), calibration.block):
        past = level[max(0, start - calibration.memory) : max(0, start - calibration.level)]
        past = past[np.isfinite(past)]
        if len(past) < 100:
            continue
        low, middle, high = np.quantile(past, [0.01, 0.5, 0.99])
        spread = max(high - low, 1e-3 * abs(middle), 1e-9)
        now = level[start : start + calibration.block]
        result[start : start + calibration.block] = np.maximum(low - now, now - high) / spread
    return result


def _broken_rhythm(series: Series, calibration: Calibration) -> Floats:
    """(N,) how far the last rows' mean is from the same time on up to four days before, in usual such departures.

    NaN where the series has had no rhythm: where such departures were not much smaller than those from the median.
    """
    usual, known = same_time_before(series, horizon=1)
    departure = np.where(known >= 0.75, series.target - usual, np.nan)
    mean = np.abs(_trailing_mean(departure, calibration.run))
    result = np.full(len(mean), np.nan)
    for start in range(0, len(mean), calibration.block):
        past = mean[max(0, start - calibration.memory) : start]
        past = past[np.isfinite(past)]
        if len(past) < 100:
            continue
        values = series.target[max(0, start - calibration.memory) : start]
        middle = float(np.nanmedian(values))
        if past.mean() > _RHYTHMIC * np.nanmean(np.abs(values - middle)):
            continue
        scale = max(float(past.mean()), 1e-4 * abs(middle), 1e-9)
        result[start : start + calibration.block] = mean[start : start + calibration.block] / scale
    return result


def _tail(values: Floats, prior: Floats, calibration: Calibration) -> Floats:
    """(N,) -log10 of the probability that a normal row has a statistic at least this large."""
    result = np.zeros(len(values))
    shift = _shift(prior)
    logs = np.log(np.maximum(values + shift, 1e-6))
    prior_fit = _fit(np.log(np.maximum(prior + shift, 1e-6)), _GRID, calibration.tail) if len(prior) else None
    for start in range(0, len(values), calibration.block):
        now = logs[start : start + calibration.block]
        past = logs[max(0, start - calibration.memory) : start]
        past = past[np.isfinite(past)]
        parts, weights = [], []
        if prior_fit is not None:
            parts.append(_survival(now, *prior_fit))
            weights.append(calibration.prior_rows)
        if len(past) >= 50:
            past.sort()
            levels = (np.arange(len(past)) + 0.5) / len(past)
            parts.append(np.maximum(_survival(now, *_fit(past, levels, calibration.tail)), 1e-16))
            weights.append(float(len(past)))
        if parts:
            probability = np.average(parts, axis=0, weights=weights)
            tail = -np.log10(np.maximum(probability, 1e-16))
            result[start : start + calibration.block] = np.where(np.isfinite(now), tail, 0)
    return result


def _shift(prior: Floats) -> float:
    """What makes a statistic positive, so that its logarithm can be taken."""
    return max(0.0, 0.1 - float(prior[0])) if len(prior) else 1.0


def _fit(ordered: Floats, levels: Floats, tail: float) -> tuple[Floats, Floats, float, float]:
    """Sorted values, their levels, where the tail begins, and the mean excess over that."""
    begin = float(np.interp(1 - tail, levels, ordered))
    if len(ordered) == len(_GRID):
        above = levels >= 1 - tail
        # On a grid of levels the mean excess is an integral over the levels.
        weights = np.diff(np.append(levels[above], 1.0))
        excess = float(np.sum((ordered[above] - begin) * weights) / max(weights.sum(), 1e-12))
    else:
        above = ordered > begin
        # Three pseudo-observations of a usual excess steady the mean where the tail holds few values.
        excess = float(((ordered[above] - begin).sum() + 3 * 0.15) / (above.sum() + 3))
    return ordered, levels, begin, max(excess, _LEAST_EXCESS)


def _survival(values: Floats, ordered: Floats, levels: Floats, begin: float, excess: float) -> Floats:
    # Just below the value, so that a tie counts as at least as large.
    body = 1 - np.interp(values - 1e-9, ordered, levels)
    tail = (1 - np.interp(begin, ordered, levels)) * np.exp(-np.maximum(values - begin, 0) / excess)
    return np.where(values > begin, tail, body)
