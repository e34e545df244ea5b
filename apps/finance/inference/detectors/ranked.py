"""A statistic as a detector: each row gets a tail probability by the rank of its statistic among earlier rows.

Beyond the largest earlier value the rank is extrapolated by an exponential tail of the logarithm (peaks over threshold;
Siffer et al., KDD 2017). The result is pooled with the statistic's probability on normal series: a weighted mean of
logarithms (logarithmic opinion pool; Genest and Zidek, 1986).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from apps.finance.inference.detectors.detector import ForecastedSeries, Ranking
from apps.finance.inference.detectors.trailing import BLOCK, block_starts, reference_rows
from apps.finance.metrics.nab import probation
from apps.finance.types import Floats

_GRID = np.concatenate([np.linspace(0.0, 0.95, 20), 1 - np.geomspace(0.05, 1e-4, 30)[1:]])
"""The quantile levels at which a statistic's distribution on normal series is tabulated."""
_MIN_EXCESS = 0.1
"""No tail is assumed to fall faster than the normal distribution does beyond its 98 % quantile, approximately."""
_MIN_ROWS = 50
_REPETITION_MARGIN = 0.05
_MIN_PROBABILITY = 1e-16


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedStatistic:
    """The detector of a statistic that is larger for more unusual rows.

    ``statistic`` returns its value for each row (N,), from that row and earlier ones; NaN where there is too little
    history. Its second argument is the number of earlier rows that it may use. ``rows`` is the number of rows over
    which it averages, so a large value repeats for that long. ``prior`` has the quantiles of the statistic on normal
    series at fixed levels. ``channel``, ``echo_rows`` and ``max_hold_rows`` are those of ``Detector``.
    """

    channel: str
    statistic: Callable[[ForecastedSeries, int], Floats]
    rows: int = 1
    echo_rows: int = 0
    max_hold_rows: int = 0
    prior: tuple[float, ...] = ()
    ranking: Ranking = field(default_factory=Ranking)

    def fit(self, history: Sequence[ForecastedSeries]) -> RankedStatistic:
        """A copy with the distribution of the statistic on ``history``, without each series' probationary period."""
        statistics = [self.statistic(item, self.ranking.memory)[probation(len(item.series)) :] for item in history]
        return replace(self, prior=tuple(tabulate_prior(np.concatenate(statistics))))

    def configured(self, prior: Sequence[float], ranking: Ranking) -> RankedStatistic:
        return replace(self, prior=tuple(prior), ranking=ranking)

    def score(self, series: ForecastedSeries) -> Floats:
        first, name = series.first, self.statistic.__name__
        values = series.extend_carried(name, self.statistic(series, self.ranking.memory)[first:])
        kept = np.zeros(len(values), np.int8)
        kept[:first] = series.carried.get(f"{name} kept", kept)[:first]
        scores = _tail_probability(values, self.rows, np.asarray(self.prior), self.ranking, kept, first)
        series.carried[f"{name} kept"] = kept
        return series.extend_carried(f"{name} score", scores[first:])


def tabulate_prior(values: Floats) -> list[float]:
    """The quantiles of a statistic on normal rows; empty if there are none."""
    finite = values[np.isfinite(values)]
    return [round(float(value), 5) for value in np.quantile(finite, _GRID)] if len(finite) else []


@dataclass(frozen=True, slots=True)
class _Tail:
    """The tail of a distribution of logarithms: where its largest ``share`` begins, and the mean excess over that."""

    begin: float
    excess: float
    share: float

    def survival(self, logs: Floats) -> Floats:
        """(N,) the probability of exceeding ``logs``; 0 for values below the tail."""
        scaled_excess = np.maximum(logs - self.begin, 0) / self.excess
        return np.where(logs > self.begin, self.share * np.exp(-scaled_excess), 0.0)


def _tail_probability(
    values: Floats, rows: int, prior: Floats, ranking: Ranking, kept: NDArray[np.int8], first: int
) -> Floats:
    """(N,) -log10 of the probability that a normal row has a statistic at least this large, from the row ``first`` on.

    Each large value enters the history once: among large values within ``rows`` rows of each other, only the first and
    clearly larger ones enter, because a mean over that many rows repeats what it has seen. ``kept`` (N,), filled from
    ``first`` on, records this: 1 for an ordinary value, 2 for a large value that enters, -1 for one that is a
    repetition.
    """
    # Shift the statistic to positive values, so that its logarithm exists.
    shift = max(0.0, 0.1 - float(prior[0])) if len(prior) else 1.0
    known = np.isfinite(values)
    logs = np.log(np.maximum(np.where(known, values, 0) + shift, 1e-6))
    prior_score = np.zeros(len(values))
    if len(prior):
        prior_score[first:] = _by_prior(logs[first:], np.log(np.maximum(prior + shift, 1e-6)), ranking.tail)
    kept[first:] = known[first:]
    large, entered = np.flatnonzero(np.abs(kept - 0.5) > 1), np.flatnonzero(kept > 1)
    last_row = int(large[-1]) if len(large) else -rows - 1
    last_value = float(logs[entered[-1]]) if len(entered) else 0.0
    result = np.zeros(len(values))
    for edge in block_starts(first, len(values)):
        block, rows_before = slice(max(edge, first), edge + BLOCK), reference_rows(edge, ranking.memory)
        history = np.sort(logs[rows_before][kept[rows_before] > 0])
        if len(history) < _MIN_ROWS:
            result[block] = prior_score[block]
            continue
        tail = _fit_tail(history, ranking.tail)
        rank_score = _by_rank(logs[block], history, tail)
        weight = ranking.prior_rows / (ranking.prior_rows + len(history)) if len(prior) else 0.0
        result[block] = (1 - weight) * rank_score + weight * prior_score[block]
        for row in (block.start + np.flatnonzero(known[block] & (logs[block] > tail.begin))).tolist():
            is_new = row - last_row > rows or logs[row] > last_value + _REPETITION_MARGIN
            kept[row] = 2 if is_new else -1
            last_value = logs[row] if is_new else last_value
            last_row = row
    return np.where(known, result, 0)


def _by_rank(logs: Floats, history: Floats, tail: _Tail) -> Floats:
    """(N,) -log10 of the larger of two probabilities: the share of ``history`` (sorted) that is as large, and the
    fitted tail's.

    Beyond the largest value in ``history`` only the tail counts.
    """
    # Search just below the value, so that ties count as at least as large.
    as_large = (len(history) - np.searchsorted(history, logs - 1e-9) + 1) / (len(history) + 1)
    share_at_least = np.where(logs <= history[-1], as_large, 0.0)
    return -np.log10(np.maximum(np.maximum(share_at_least, tail.survival(logs)), _MIN_PROBABILITY))


def _by_prior(logs: Floats, prior: Floats, share: float) -> Floats:
    """(N,) the same by the quantiles ``prior`` of normal series at the levels of the grid."""
    tail_start = float(np.interp(1 - share, _GRID, prior))
    above = (1 - share) <= _GRID
    # On a grid of quantile levels, the mean excess is an integral over the levels.
    weights = np.diff(np.append(_GRID[above], 1.0))
    excess = float(np.sum((prior[above] - tail_start) * weights) / max(weights.sum(), 1e-12))
    tail = _Tail(tail_start, max(excess, _MIN_EXCESS), share)
    survival = np.where(logs <= prior[-1], 1 - np.interp(logs - 1e-9, prior, _GRID), 0.0)
    return -np.log10(np.maximum(np.maximum(survival, tail.survival(logs)), _MIN_PROBABILITY))


def _fit_tail(history: Floats, share: float) -> _Tail:
    """The tail of sorted logarithms."""
    tail_start = _quantile(history, 1 - share)
    above = history[np.searchsorted(history, tail_start, "right") :]
    # Three pseudo-observations of a typical excess stabilise the mean if the tail has few values.
    excess = float(((above - tail_start).sum() + 3 * 0.15) / (len(above) + 3))
    return _Tail(tail_start, max(excess, _MIN_EXCESS), max(len(above), 1) / (len(history) + 1))


def _quantile(ordered: Floats, level: float) -> float:
    """``np.quantile`` of sorted values, bit for bit; NumPy's own would sort and check them again for every 64 rows."""
    position = (len(ordered) - 1) * level
    lower = int(position)
    low, high, share = float(ordered[lower]), float(ordered[min(lower + 1, len(ordered) - 1)]), position - lower
    return low + (high - low) * share if share < 0.5 else high - (high - low) * (1 - share)
