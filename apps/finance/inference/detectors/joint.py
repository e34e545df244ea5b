"""Columns that do not move together as they did: T² and Q of their changes."""

from __future__ import annotations

import numpy as np

from apps.finance.inference.detectors.detector import HIGHEST, ForecastedSeries
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.inference.detectors.trailing import blocks, change, trailing_mean, usual_change
from apps.finance.types import Floats, Forecast, Series

_ROWS = 6
_HIGHEST = 50.0
"""No single row counts for more than so many usual ones in the mean."""
_CHUNK, _MIN_ROWS = 256, 128
_VARIANCE = 0.9
_RIDGE = 1e-3
_NONE = Forecast(levels=(), quantiles=np.empty((0, 0)), surprise=np.empty((0, 0)))


def joint(one: ForecastedSeries, memory: int) -> Floats:
    """(N,) the larger of T² and Q of the columns' changes, the mean of the last 6 rows; NaN for a single column.

    Principal components of up to ``memory`` rows before, renewed every 256 rows, hold 90 % of the variance of the
    changes, each column's in its own usual change: T² is how far a row lies along them (Hotelling, 1947), Q how far off
    them (Jackson and Mudholkar, 1979). So a column that leaves the others is seen though no column is unusual by
    itself. Each is over its mean in the past; missing values count as no change.
    """
    changes = scaled_changes(one)
    length, columns = changes.shape
    result = np.full(length, np.nan)
    if columns < 2:
        return result
    for start in (_MIN_ROWS + block for block in blocks(max(one.first - _MIN_ROWS, 0), length, _CHUNK)):
        past = changes[max(1, start - memory) : start]
        block = slice(start, start + _CHUNK)
        result[block] = np.maximum(*_over_usual(changes[block], past))
    result = one.extended("T² and Q", result[one.first :])
    return trailing_mean(np.minimum(result, _HIGHEST), _ROWS)


def scaled_changes(one: ForecastedSeries) -> Floats:
    """(N, C) the columns' changes from row to row, in usual changes, 8 at the most; 0 where one is missing."""
    scaled = []
    for name, values in one.series.values.items():
        moved = change(values, 1)
        usual = usual_change(values, np.abs(moved), one.first)
        usual = one.extended(f"usual change of {name}", usual[one.first :])
        scaled.append(np.clip(moved / usual, -HIGHEST, HIGHEST))
    return np.nan_to_num(np.stack(scaled, axis=1), nan=0.0)


def _over_usual(rows: Floats, past: Floats) -> tuple[Floats, Floats]:
    """(B,) T² and (B,) Q of ``rows`` (B, C), over their means in ``past`` (P, C)."""
    covariance = past.T @ past / len(past)
    variances, axes = np.linalg.eigh(covariance)
    variances, axes = np.maximum(variances[::-1], 0), axes[:, ::-1]
    total = max(float(variances.sum()), 1e-12)
    kept = int(np.searchsorted(np.cumsum(variances) / total, _VARIANCE)) + 1
    kept = min(kept, len(variances) - 1)
    scale = variances[:kept] + _RIDGE * total / len(variances)

    def both(these: Floats) -> tuple[Floats, Floats]:
        along = these @ axes[:, :kept]
        off = np.square(these).sum(axis=1) - np.square(along).sum(axis=1)
        return (np.square(along) / scale).sum(axis=1), np.maximum(off, 0)

    (t_squared, q), (usual_t, usual_q) = both(rows), both(past)
    least = _RIDGE * total
    return t_squared / max(float(usual_t.mean()), 1e-9), q / max(float(usual_q.mean()), least)


def contributing(series: Series, row: int) -> tuple[str, ...]:
    """The columns whose change at ``row`` departs most from what the other columns' changes make of it, by name.

    Each is regressed on the others over the rows before (ridge); at most three, and those at least half as far off
    as the first.
    """
    changes = scaled_changes(ForecastedSeries(series, _NONE))
    names, past = list(series.values), changes[max(1, row - 2000) : row]
    if len(names) < 2 or len(past) < 2 * len(names):
        return ()
    covariance = past.T @ past / len(past)
    precision = np.linalg.inv(covariance + _RIDGE * (np.trace(covariance) / len(names) + 1e-9) * np.eye(len(names)))
    # The residual of the regression of a column on the others, in its deviations, is its row of the precision matrix.
    off = np.abs(precision @ changes[row]) / np.sqrt(np.diag(precision))
    order = np.argsort(-off)
    return tuple(names[place] for place in order[:3].tolist() if off[place] >= 0.5 * off[order[0]])


DETECTOR = RankedStatistic(word="joint", statistic=joint, rows=_ROWS, echo=_ROWS - 1)
