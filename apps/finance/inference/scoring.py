"""From statistics to scores: how improbable each row is, given what the series has done before.

Each channel's statistic is given a tail probability by its rank among the same series' earlier rows, continued beyond
the largest of them by an exponential tail in the logarithm (peaks over threshold; Siffer et al., KDD 2017), and pooled
with the probability that the channel gives it on synthetic normal series: a weighted mean of logarithms (logarithmic
opinion pool; Genest and Zidek, 1986). A row's score is -log10 of its smallest probability over 10. Nothing looks ahead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from apps.finance.inference.channels import BLOCK, CHANNELS, past, statistics
from apps.finance.types import Floats, Forecast, Series

_GRID = np.concatenate([np.linspace(0.0, 0.95, 20), 1 - np.geomspace(0.05, 1e-4, 30)[1:]])
"""The levels at which a channel's distribution on normal series is tabulated."""
_LEAST_EXCESS = 0.1
"""No tail is taken to fall faster than about the normal distribution's does beyond its 98 % quantile."""
_LEAST_ROWS = 50
_REPEATED = 0.05
_SMALLEST = 1e-16


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What turns statistics into scores and events; found on synthetic series, kept in an artifact's manifest.

    ``prior`` has the quantiles of each channel's statistic on normal rows at the levels of a fixed grid; it counts as
    ``prior_rows`` earlier rows. ``tail`` is the share of rows that make up the tail, ``memory`` the number of rows
    that make up the past. ``quiet_rows`` is how long after a detection only a stronger one counts, by
    ``margin`` in score. ``threshold`` is the score from which a row begins an event.
    """

    prior: Mapping[str, list[float]] = field(default_factory=dict)
    prior_rows: float = 1000.0
    tail: float = 0.02
    memory: int = 8000
    quiet_rows: int = 120
    margin: float = 0.2
    threshold: float = 0.4


def improbability(series: Series, forecast: Forecast, calibration: Calibration) -> dict[str, Floats]:
    """-log10 of each channel's tail probability at each row, (N,); 0 where there is no statistic yet."""
    return {
        name: _tail(values, CHANNELS[name].rows, np.asarray(calibration.prior.get(name, ())), calibration)
        for name, values in statistics(series, forecast, memory=calibration.memory).items()
    }


def combine(channels: Mapping[str, Floats]) -> Floats:
    """(N,) the score in [0, 1] from each channel's -log10 p: the largest over 10."""
    strongest: Floats = np.max(list(channels.values()), axis=0)
    return np.clip(strongest / 10, 0, 1)


def score(series: Series, forecast: Forecast, calibration: Calibration) -> Floats:
    """(N,) the score of each row in [0, 1]: -log10 of the smallest tail probability over 10."""
    return combine(improbability(series, forecast, calibration))


def tabulate_prior(values: Floats) -> list[float]:
    """The quantiles of a statistic on normal rows, as ``Calibration.prior`` keeps them."""
    return [round(float(value), 5) for value in np.quantile(values[np.isfinite(values)], _GRID)]


@dataclass(frozen=True, slots=True)
class _Tail:
    """Where the largest ``share`` of a distribution begins, in logarithms, and the mean excess over that."""

    begin: float
    excess: float
    share: float

    def survival(self, logs: Floats) -> Floats:
        """(N,) the probability beyond ``logs``; 0 for what is not in the tail."""
        beyond = np.maximum(logs - self.begin, 0) / self.excess
        return np.where(logs > self.begin, self.share * np.exp(-beyond), 0.0)


def _tail(values: Floats, rows: int, prior: Floats, calibration: Calibration) -> Floats:
    """(N,) -log10 of the probability that a normal row has a statistic at least this large.

    Large values enter the history once each time: of those that follow each other within ``rows`` rows only the first
    and clearly larger ones, since the mean over so many rows repeats what it has seen.
    """
    # What makes a statistic positive, so that its logarithm can be taken.
    shift = max(0.0, 0.1 - float(prior[0])) if len(prior) else 1.0
    known = np.isfinite(values)
    logs = np.log(np.maximum(np.where(known, values, 0) + shift, 1e-6))
    usual = _by_prior(logs, np.log(np.maximum(prior + shift, 1e-6)), calibration.tail) if len(prior) else None
    kept, last_row, last_value = known.copy(), -rows - 1, 0.0
    result = np.zeros(len(values))
    for start in range(0, len(values), BLOCK):
        block, rows_before = slice(start, start + BLOCK), past(start, calibration.memory)
        before = np.sort(logs[rows_before][kept[rows_before]])
        if len(before) < _LEAST_ROWS:
            result[block] = 0 if usual is None else usual[block]
            continue
        tail = _fit(before, calibration.tail)
        own = _by_rank(logs[block], before, tail)
        weight = 0.0 if usual is None else calibration.prior_rows / (calibration.prior_rows + len(before))
        result[block] = own if usual is None else (1 - weight) * own + weight * usual[block]
        for row in (start + np.flatnonzero(known[block] & (logs[block] > tail.begin))).tolist():
            kept[row] = row - last_row > rows or logs[row] > last_value + _REPEATED
            last_value = logs[row] if kept[row] else last_value
            last_row = row
    return np.where(known, result, 0)


def _by_rank(logs: Floats, before: Floats, tail: _Tail) -> Floats:
    """(N,) -log10 of the larger of the share of ``before`` (sorted) that is as large and the fitted tail's probability.

    Beyond the largest of ``before`` the tail alone speaks.
    """
    # Just below the value, so that a tie counts as at least as large.
    as_large = (len(before) - np.searchsorted(before, logs - 1e-9) + 1) / (len(before) + 1)
    seen = np.where(logs <= before[-1], as_large, 0.0)
    return -np.log10(np.maximum(np.maximum(seen, tail.survival(logs)), _SMALLEST))


def _by_prior(logs: Floats, prior: Floats, share: float) -> Floats:
    """(N,) the same by the quantiles of normal series, ``prior``, at the levels of the grid."""
    begin = float(np.interp(1 - share, _GRID, prior))
    above = (1 - share) <= _GRID
    # On a grid of levels the mean excess is an integral over the levels.
    weights = np.diff(np.append(_GRID[above], 1.0))
    excess = float(np.sum((prior[above] - begin) * weights) / max(weights.sum(), 1e-12))
    tail = _Tail(begin, max(excess, _LEAST_EXCESS), share)
    seen = np.where(logs <= prior[-1], 1 - np.interp(logs - 1e-9, prior, _GRID), 0.0)
    return -np.log10(np.maximum(np.maximum(seen, tail.survival(logs)), _SMALLEST))


def _fit(before: Floats, share: float) -> _Tail:
    """The tail of sorted logarithms."""
    begin = float(np.quantile(before, 1 - share))
    above = before[before > begin]
    # Three pseudo-observations of a usual excess steady the mean where the tail holds few values.
    excess = float(((above - begin).sum() + 3 * 0.15) / (len(above) + 3))
    return _Tail(begin, max(excess, _LEAST_EXCESS), max(len(above), 1) / (len(before) + 1))
