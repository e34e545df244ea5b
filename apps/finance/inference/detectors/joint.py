"""Columns that no longer move together as before: T² and Q of their changes."""

from __future__ import annotations

import numpy as np

from apps.finance.inference.detectors.detector import MAX_CONTRIBUTION, ForecastedSeries
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.inference.detectors.trailing import BLOCK, block_starts, change, trailing_mean, usual_change
from apps.finance.types import Floats, Forecast, Series

_ROWS = 6
_MAX_ROW_CONTRIBUTION = 50.0
"""The maximum contribution of a single row to the mean, in units of the mean in the past."""
_CHUNK, _MIN_PAST = 256, 128
_VARIANCE = 0.9
_RIDGE = 1e-3
_NO_FORECAST = Forecast(levels=(), quantiles=np.empty((0, 0)), surprise=np.empty((0, 0)))


def first_joint_row(columns: int) -> int:
    """The first row with a joint score of ``columns`` columns.

    The changes of the first 64 rows have no typical change to be scaled by. Then there must be as many rows as columns,
    because components of fewer rows fit only these, and later rows seem far from them.
    """
    return BLOCK + max(_MIN_PAST, columns)


def joint(forecasted: ForecastedSeries, memory: int) -> Floats:
    """(N,) the larger of T² and Q of the columns' changes, averaged over the last 6 rows; NaN for a single column.

    Principal components of up to ``memory`` earlier rows, updated every 256 rows, hold 90 % of the variance of the
    changes, each column scaled by its typical change. T² is the distance of a row along the components (Hotelling,
    1947), Q its distance off them (Jackson and Mudholkar, 1979). So a column that stops moving with the others is
    detected although no column is unusual by itself. T² and Q are divided by their means in the past; missing values
    count as no change.
    """
    changes = scaled_changes(forecasted)
    length, columns = changes.shape
    result = np.full(length, np.nan)
    if columns < 2:
        return result
    first_row = first_joint_row(columns)
    for block_start in block_starts(max(forecasted.first - first_row, 0), length - first_row, _CHUNK):
        start = first_row + block_start
        past = changes[max(BLOCK, start - memory) : start]
        block = slice(start, start + _CHUNK)
        result[block] = np.maximum(*_relative_t2_and_q(changes[block], past))
    result = forecasted.extend_carried("T² and Q", result[forecasted.first :])
    return trailing_mean(np.minimum(result, _MAX_ROW_CONTRIBUTION), _ROWS)


def scaled_changes(forecasted: ForecastedSeries) -> Floats:
    """(N, C) the columns' changes from row to row in units of their typical change, clipped to ±8; 0 where missing."""
    scaled = []
    for name, values in forecasted.series.values.items():
        changes = change(values, 1)
        typical = usual_change(values, np.abs(changes), forecasted.first)
        typical = forecasted.extend_carried(f"usual change of {name}", typical[forecasted.first :])
        scaled.append(np.clip(changes / typical, -MAX_CONTRIBUTION, MAX_CONTRIBUTION))
    return np.nan_to_num(np.stack(scaled, axis=1), nan=0.0)


def _relative_t2_and_q(rows: Floats, past: Floats) -> tuple[Floats, Floats]:
    """(B,) T² and (B,) Q of ``rows`` (B, C), divided by their means in ``past`` (P, C)."""
    covariance = past.T @ past / len(past)
    variances, axes = np.linalg.eigh(covariance)
    variances, axes = np.maximum(variances[::-1], 0), axes[:, ::-1]
    total = max(float(variances.sum()), 1e-12)
    kept = int(np.searchsorted(np.cumsum(variances) / total, _VARIANCE)) + 1
    kept = min(kept, len(variances) - 1)
    scale = variances[:kept] + _RIDGE * total / len(variances)

    def t2_and_q(changes: Floats) -> tuple[Floats, Floats]:
        along = changes @ axes[:, :kept]
        residual = np.square(changes).sum(axis=1) - np.square(along).sum(axis=1)
        return (np.square(along) / scale).sum(axis=1), np.maximum(residual, 0)

    (t_squared, q), (past_t2, past_q) = t2_and_q(rows), t2_and_q(past)
    min_q = _RIDGE * total
    return t_squared / max(float(past_t2.mean()), 1e-9), q / max(float(past_q.mean()), min_q)


def contributing_columns(series: Series, row: int) -> tuple[str, ...]:
    """The columns whose change at ``row`` deviates most from its prediction by the other columns' changes, by name.

    Each column is regressed on the others over the rows before (ridge). At most three columns are returned, each with
    at least half the deviation of the first.
    """
    changes = scaled_changes(ForecastedSeries(series, _NO_FORECAST))
    names, past = list(series.values), changes[max(1, row - 2000) : row]
    if len(names) < 2 or len(past) < 2 * len(names):
        return ()
    covariance = past.T @ past / len(past)
    precision = np.linalg.inv(covariance + _RIDGE * (np.trace(covariance) / len(names) + 1e-9) * np.eye(len(names)))
    # A column's standardised residual in the regression on the others follows from its row of the precision matrix.
    deviation = np.abs(precision @ changes[row]) / np.sqrt(np.diag(precision))
    order = np.argsort(-deviation)
    return tuple(names[index] for index in order[:3].tolist() if deviation[index] >= 0.5 * deviation[order[0]])


DETECTOR = RankedStatistic(channel="joint", statistic=joint, rows=_ROWS, echo_rows=_ROWS - 1)
