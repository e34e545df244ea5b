"""A statistic as a detector: each row gets a tail probability by the rank of its statistic among earlier rows.

The rank is continued beyond the largest earlier value by an exponential tail in the logarithm (peaks over threshold;
Siffer et al., KDD 2017), and pooled with the probability that the statistic has on normal series: a weighted mean of
logarithms (logarithmic opinion pool; Genest and Zidek, 1986).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from apps.finance.inference.detectors.detector import ForecastedSeries, Ranking
from apps.finance.inference.detectors.trailing import BLOCK, blocks, past
from apps.finance.metrics.nab import probation
from apps.finance.types import Floats

_GRID = np.concatenate([np.linspace(0.0, 0.95, 20), 1 - np.geomspace(0.05, 1e-4, 30)[1:]])
"""The levels at which a statistic's distribution on normal series is tabulated."""
_MIN_EXCESS = 0.1
"""No tail is taken to fall faster than about the normal distribution's does beyond its 98 % quantile."""
_MIN_ROWS = 50
_REPEATED = 0.05
_SMALLEST = 1e-16


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedStatistic:
    """The detector of a statistic that is larger for more unusual rows.

    ``statistic`` gives it for each row, (N,), from that row and earlier ones; NaN where there is none yet. Its second
    argument is the number of earlier rows that make up the past. ``rows`` is how many rows it is a mean over: as long
    a large value repeats itself. ``prior`` has the quantiles of the statistic on normal series at fixed levels.
    """

    word: str
    statistic: Callable[[ForecastedSeries, int], Floats]
    rows: int = 1
    echo: int = 0
    holds: int = 0
    prior: tuple[float, ...] = ()
    ranking: Ranking = field(default_factory=Ranking)

    def fit(self, history: Sequence[ForecastedSeries]) -> RankedStatistic:
        """With the distribution of the statistic on ``history``, after the probationary period of each series."""
        parts = [self.statistic(one, self.ranking.memory)[probation(len(one.series)) :] for one in history]
        return replace(self, prior=tuple(tabulate_prior(np.concatenate(parts))))

    def configured(self, prior: Sequence[float], ranking: Ranking) -> RankedStatistic:
        return replace(self, prior=tuple(prior), ranking=ranking)

    def score(self, series: ForecastedSeries) -> Floats:
        first, name = series.first, self.statistic.__name__
        values = series.extended(name, self.statistic(series, self.ranking.memory)[first:])
        kept = np.zeros(len(values), np.int8)
        kept[:first] = series.carried.get(f"{name} kept", kept)[:first]
        scores = _tail_probability(values, self.rows, np.asarray(self.prior), self.ranking, kept, first)
        series.carried[f"{name} kept"] = kept
        return series.extended(f"{name} score", scores[first:])


def tabulate_prior(values: Floats) -> list[float]:
    """The quantiles of a statistic on normal rows; empty where there is no such row."""
    seen = values[np.isfinite(values)]
    return [round(float(value), 5) for value in np.quantile(seen, _GRID)] if len(seen) else []


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


def _tail_probability(
    values: Floats, rows: int, prior: Floats, ranking: Ranking, kept: NDArray[np.int8], first: int
) -> Floats:
    """(N,) -log10 of the probability that a normal row has a statistic at least this large, from the row ``first`` on.

    Large values enter the history once each time: of those that follow each other within ``rows`` rows only the first
    and clearly larger ones, since the mean over so many rows repeats what it has seen. ``kept`` (N,), which is filled
    from ``first`` on, says so: 1 for an ordinary value, 2 for a large one that enters, -1 for one that repeats another.
    """
    # What makes a statistic positive, so that its logarithm can be taken.
    shift = max(0.0, 0.1 - float(prior[0])) if len(prior) else 1.0
    known = np.isfinite(values)
    logs = np.log(np.maximum(np.where(known, values, 0) + shift, 1e-6))
    usual = np.zeros(len(values))
    if len(prior):
        usual[first:] = _by_prior(logs[first:], np.log(np.maximum(prior + shift, 1e-6)), ranking.tail)
    kept[first:] = known[first:]
    large, entered = np.flatnonzero(np.abs(kept - 0.5) > 1), np.flatnonzero(kept > 1)
    last_row = int(large[-1]) if len(large) else -rows - 1
    last_value = float(logs[entered[-1]]) if len(entered) else 0.0
    result = np.zeros(len(values))
    for edge in blocks(first, len(values)):
        block, rows_before = slice(max(edge, first), edge + BLOCK), past(edge, ranking.memory)
        before = np.sort(logs[rows_before][kept[rows_before] > 0])
        if len(before) < _MIN_ROWS:
            result[block] = usual[block]
            continue
        tail = _fit(before, ranking.tail)
        own = _by_rank(logs[block], before, tail)
        weight = ranking.prior_rows / (ranking.prior_rows + len(before)) if len(prior) else 0.0
        result[block] = (1 - weight) * own + weight * usual[block]
        for row in (block.start + np.flatnonzero(known[block] & (logs[block] > tail.begin))).tolist():
            enters = row - last_row > rows or logs[row] > last_value + _REPEATED
            kept[row] = 2 if enters else -1
            last_value = logs[row] if enters else last_value
            last_row = row
    return np.where(known, result, 0)


def _by_rank(logs: Floats, before: Floats, tail: _Tail) -> Floats:
    """(N,) -log10 of the larger of the share of ``before`` (sorted) that is as large and the fitted tail's probability.

    Beyond the largest of ``before`` the tail alone counts.
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
    tail = _Tail(begin, max(excess, _MIN_EXCESS), share)
    seen = np.where(logs <= prior[-1], 1 - np.interp(logs - 1e-9, prior, _GRID), 0.0)
    return -np.log10(np.maximum(np.maximum(seen, tail.survival(logs)), _SMALLEST))


def _fit(before: Floats, share: float) -> _Tail:
    """The tail of sorted logarithms."""
    begin = _quantile(before, 1 - share)
    above = before[np.searchsorted(before, begin, "right") :]
    # Three pseudo-observations of a usual excess steady the mean where the tail holds few values.
    excess = float(((above - begin).sum() + 3 * 0.15) / (len(above) + 3))
    return _Tail(begin, max(excess, _MIN_EXCESS), max(len(above), 1) / (len(before) + 1))


def _quantile(ordered: Floats, level: float) -> float:
    """``np.quantile`` of what is sorted already, to the last bit; that one would sort and check it anew for 64 rows."""
    place = (len(ordered) - 1) * level
    first = int(place)
    low, high, share = float(ordered[first]), float(ordered[min(first + 1, len(ordered) - 1)]), place - first
    return low + (high - low) * share if share < 0.5 else high - (high - low) * (1 - share)
