"""Windows over series: one flat table of covariates, from which each batch is gathered.

A window is ``context`` rows that the model sees and ``horizon`` rows that it forecasts. Each window is normalised by
itself, in two steps. First its level and spread (median and mean absolute deviation of the observed context), through
the inverse hyperbolic sine. Then its origin and step: the last value, scaled down if the context is noise rather than a
wandering level, and the mean absolute change; again through the inverse hyperbolic sine. So one model serves series in
any unit, and zero is persistence's forecast for a price and the median's forecast for noise. All covariates of a row
are known ``horizon`` rows before it, given the times of the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from apps.finance.types import DAY_NS, WEEK_NS, Floats, Series, Times
from shared.data.order import Indices, Key

if TYPE_CHECKING:
    from shared.data.dataset import Batch

COLUMNS = (
    "value",
    "missing",
    "day",
    "day_known",
    "week",
    "week_known",
    "gap",
    *("tod_sin", "tod_cos", "dow_sin", "dow_cos"),
)
"""The covariates in the order of a window's columns; all are reals in ``pytorch_forecasting``'s terms."""
STATIC_REALS = ("volatility", "origin", "step")
"""Static reals: the log of the history's scale over the window's (its relative volatility); the origin and the log of
the step of the forecast, in units of the window's level and spread. The network's weights carry these names."""
UNKNOWN = ("value", "missing")
"""Columns that are not known ahead of time."""
_SCALE = len(COLUMNS)
_DAYS, _WEEKS, _BLOCK, _HISTORY = 4, 2, 64, 2000
MIN_CONTEXT = 16
_MIN_SPREAD_SHARE, _MIN_RELATIVE_SCALE = 0.1, 1e-5
_MIN_STEP = 0.02
_FULL_ORIGIN_CORRELATION = 0.8
"""At this lag-1 correlation and above, the forecast's origin is the last value."""
_MAX_STEPS, _MAX_LEVEL = 12.0, 30.0
# A normal distribution's standard deviation over its mean absolute deviation is sqrt(pi / 2).
_MEAN_DEVIATION = float(np.sqrt(np.pi / 2))


@dataclass(frozen=True, slots=True)
class Covariates:
    """The covariates of one series, with ``context`` rows of padding at the front.

    ``rows`` (context + N, 12) float64: the covariates in ``COLUMNS``, levels in the units of the series, and in the
    last column the scale of the history.
    """

    rows: Floats


def covariate_table(series: Series, *, context: int, horizon: int) -> Covariates:
    """The covariate table of ``series``: O(N) work; each row uses rows at least ``horizon`` earlier (except value and
    time).

    Missing values at the start of a series are filled with its first value and must not be scored.
    """
    values = series.target
    missing = ~np.isfinite(values)
    filled = fill_missing(values)
    times, length = series.times_ns, len(series)
    interval = trailing_interval_ns(times)
    rows = np.zeros((context + length, _SCALE + 1))
    body = rows[context:]
    body[:, 0], body[:, 1] = filled, missing
    smooth = _smooth(filled)
    body[:, 2], body[:, 3] = _lagged(smooth, times, DAY_NS, _DAYS, horizon, interval)
    body[:, 4], body[:, 5] = _lagged(smooth, times, WEEK_NS, _WEEKS, horizon, interval)
    steps = np.diff(times, prepend=times[:1]) / interval
    body[1:, 6] = np.clip(np.log(np.maximum(steps[1:], 1e-3)), -3, 6)
    day, within = 2 * np.pi * (times % DAY_NS) / DAY_NS, interval < DAY_NS
    body[:, 7], body[:, 8] = np.where(within, np.sin(day), 0), np.where(within, np.cos(day), 0)
    week = 2 * np.pi * ((times // DAY_NS + 3) % 7) / 7
    body[:, 9], body[:, 10] = np.sin(week), np.cos(week)
    body[:, _SCALE] = _history_scale(filled)
    rows[:context, 0], rows[:context, 1], rows[:context, _SCALE] = filled[0], 1, body[0, _SCALE]
    return Covariates(rows)


def trailing_interval_ns(times: Times, first: int = 0) -> Floats:
    """(N,) the typical time between rows as known at each row: the median of up to 2000 earlier steps, at least 1 ns.

    Updated every 64 rows, and at every row of the first 64. Only rows from ``first`` on are guaranteed to be filled.
    """
    steps, length = np.diff(times).astype(np.float64), len(times)
    intervals = np.ones(length)
    if length > 1 and np.all(steps == steps[0]):
        intervals[1:] = steps[0]
        return np.maximum(intervals, 1.0)
    for row in range(max(first, 1), min(_BLOCK, length)):
        intervals[row] = _median_by_sorting(steps[:row])
    for start in range(max(first // _BLOCK * _BLOCK, _BLOCK), length, _BLOCK):
        intervals[start : start + _BLOCK] = _median_by_sorting(steps[max(0, start - _HISTORY) : start])
    return np.maximum(intervals, 1.0)


def same_time_before(
    series: Series, *, horizon: int, lag_ns: int = DAY_NS, count: int = _DAYS, first: int = 0
) -> tuple[Floats, Floats]:
    """The median of the values one to ``count`` lags before the rows from ``first`` on, and the share of these that
    exist.

    Both have the shape (N - first,).
    """
    smooth = _smooth(fill_missing(series.target))
    interval = trailing_interval_ns(series.times_ns, first)
    return _lagged(smooth, series.times_ns, lag_ns, count, horizon, interval, first)


def _smooth(values: Floats) -> Floats:
    return np.convolve(np.pad(values, 1, mode="edge"), np.full(3, 1 / 3), "valid")


def last_seen(values: Floats) -> Floats:
    """(N,) the latest finite value up to each row; NaN before the first."""
    finite = np.isfinite(values)
    row = np.maximum.accumulate(np.where(finite, np.arange(len(values)), -1))
    return np.where(row >= 0, values[row], np.nan)


def last_values(series: Series, rows: int) -> dict[str, float]:
    """The last value of each column within the first ``rows`` rows; columns without a value there are left out."""
    finite = {name: np.flatnonzero(np.isfinite(numbers[:rows])) for name, numbers in series.values.items()}
    return {name: float(series.values[name][found[-1]]) for name, found in finite.items() if len(found)}


def after_values(series: Series, before: Mapping[str, float]) -> Series:
    """The series with the last values ``before`` it, by column, where its first row has none: a network takes the value
    before in place of a missing one."""
    missing = [name for name in before if not np.isfinite(series.values[name][0])]
    filled = {name: np.concatenate([[before[name]], series.values[name][1:]]) for name in missing}
    return replace(series, values={**series.values, **filled}) if filled else series


def fill_missing(values: Floats) -> Floats:
    """(N,) missing values replaced by the one before; leading ones by the first value, or by 0 if there is none."""
    finite = np.isfinite(values)
    if finite.all():
        return values
    if not finite.any():
        return np.zeros_like(values)
    last_values = last_seen(values)
    return np.where(np.isnan(last_values), values[int(np.argmax(finite))], last_values)


def _lagged(
    smooth: Floats, times: Times, lag_ns: int, count: int, horizon: int, interval_ns: Floats, first: int = 0
) -> tuple[Floats, Floats]:
    """(N - first,) the median of the values one to ``count`` lags earlier, and (N - first,) the share of them that
    exist."""
    length = len(smooth)
    values_by_lag = np.full((count, length - first), np.nan)
    rows = np.arange(first, length)
    for index in range(count):
        wanted = times[first:] - (index + 1) * lag_ns
        after = np.clip(np.searchsorted(times, wanted), 1, length - 1) if length > 1 else np.zeros(length, int)
        nearest = np.where(np.abs(times[after] - wanted) <= np.abs(times[after - 1] - wanted), after, after - 1)
        # Smoothing used the next row, so that row must be in the past as well.
        is_usable = (np.abs(times[nearest] - wanted) <= 2 * interval_ns[first:]) & (nearest + 1 <= rows - horizon)
        values_by_lag[index, is_usable] = smooth[nearest[is_usable]]
    known = np.isfinite(values_by_lag).mean(axis=0)
    ordered = np.sort(values_by_lag, axis=0)  # NaN last
    number = (known * count).round().astype(int)
    low, high = np.maximum(number - 1, 0) // 2, number // 2
    high = np.minimum(high, np.maximum(number - 1, 0))
    median = (ordered[low, rows - first] + ordered[high, rows - first]) / 2
    return np.where(number > 0, median, 0.0), known


def _median_of_finite(values: Floats) -> float:
    """The median of finite values without ``np.median``'s checks: a third of the time for a thousand values."""
    low = (len(values) - 1) // 2
    ordered = np.partition(values, low)
    high = ordered[low] if len(values) % 2 else ordered[low + 1 :].min()
    return float((ordered[low] + high) / 2)


def _median_by_sorting(values: Floats) -> float:
    """The median of values most of which are equal: NumPy's selection takes ten times as long as sorting them."""
    ordered = np.sort(values)
    return float((ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2)


def _history_scale(filled: Floats) -> Floats:
    """(N,) the mean absolute deviation of up to 2000 earlier rows, updated every 64 rows; always above zero."""
    scales = np.zeros(len(filled))
    for start in range(0, len(filled), _BLOCK):
        past = filled[max(0, start - _HISTORY) : max(start, 1)]
        median = _median_of_finite(past)
        spread = np.abs(past - median).mean() * _MEAN_DEVIATION
        scales[start : start + _BLOCK] = max(spread, _MIN_RELATIVE_SCALE * abs(median), 1e-12)
    return scales


class Windows:
    """The windows of several series, as a data set for training and inference.

    ``stride`` is the number of rows between the forecasts of neighbouring windows. ``first_rows`` has for each series
    the first row that is forecast. A batch, as torch tensors or as NumPy ``arrays``, has ``encoder_cont`` (B, context,
    11), ``decoder_cont`` (B, horizon, 11), ``static`` (B, 3), ``target`` (B, horizon), ``observed`` (B, horizon) in {0,
    1}, and ``frame`` (B, 4) float64 for ``denormalise``: centre and scale in the units of the series, origin and step
    within those.
    """

    def __init__(
        self,
        tables: Sequence[Covariates],
        *,
        context: int,
        horizon: int,
        stride: int = 1,
        first_rows: Sequence[int] | None = None,
    ) -> None:
        self.context, self.horizon = context, horizon
        self.flat = np.concatenate([table.rows for table in tables])
        starts_by_series, offset = [], 0
        for table, first_row in zip(tables, first_rows or [0] * len(tables), strict=True):
            last = len(table.rows) - context - horizon
            min_start = max(min(MIN_CONTEXT, max(last, 0)), first_row)
            starts_by_series.append(offset + np.arange(min_start, last + 1, stride, dtype=np.int64))
            offset += len(table.rows)
        self.starts = np.concatenate(starts_by_series)

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, indices: Indices, key: Key | None) -> Batch:
        import torch

        return {name: torch.from_numpy(value) for name, value in self.arrays(indices, key).items()}

    def arrays(self, indices: Indices, key: Key | None = None) -> dict[str, NDArray[Any]]:
        """The batch as NumPy arrays: a program that is loaded from a file computes on them without torch."""
        rows = self.starts[indices][:, None] + np.arange(self.context + self.horizon)
        windows = self.flat.take(rows, axis=0)
        if key is not None:
            _augment(windows, indices, key, self.context)
        return normalise(windows, self.context)


def _augment(windows: Floats, indices: Indices, key: Key, context: int) -> None:
    """In place: removes the daily lags, the weekly lags or the oldest rows of some windows, and flips the sign of half
    of them."""
    draws = uniform(key, indices, 5)
    keep_day, keep_week = draws[:, 0] > 0.15, draws[:, 1] > 0.2
    windows[:, :, 2:4] *= keep_day[:, None, None]
    windows[:, :, 4:6] *= (keep_day & keep_week)[:, None, None]
    oldest = np.where(draws[:, 2] < 0.1, draws[:, 3] * (context - MIN_CONTEXT), 0).astype(np.int64)
    windows[:, :context, 1][np.arange(context)[None] < oldest[:, None]] = 1
    sign = np.where(draws[:, 4] < 0.5, -1.0, 1.0)[:, None]
    for column in (0, 2, 4):
        windows[:, :, column] *= sign


def uniform(key: Key, indices: Indices, number: int) -> NDArray[np.float32]:
    """(B, number) draws from [0, 1), a pure function of seed, epoch and index, as ``key.generator`` is.

    A counter passed through SplitMix64's finaliser (Steele et al., 2014), for a whole batch at once: creating a
    generator for each window would take longer than the window itself.
    """
    state = np.random.SeedSequence((key.seed, key.epoch)).generate_state(1, np.uint64)[0]
    counter = indices.astype(np.uint64)[:, None] * np.uint64(number) + np.arange(number, dtype=np.uint64)
    mixed = counter * np.uint64(0x9E3779B97F4A7C15) + state
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    uniform: NDArray[np.float32] = ((mixed >> np.uint64(40)).astype(np.float64) / 2**24).astype(np.float32)
    return uniform


def normalise(windows: Floats, context: int) -> dict[str, NDArray[Any]]:
    """Windows (B, context + horizon, 12) of a covariate table as a batch; see ``Windows``."""
    value, missing = windows[:, :context, 0], windows[:, :context, 1] > 0.5
    all_missing = missing.all(axis=1, keepdims=True)
    unseen = missing & ~all_missing
    centre = _median(value, unseen)
    spread = _mean(np.abs(value - centre), unseen) * _MEAN_DEVIATION
    history = windows[:, context, _SCALE : _SCALE + 1]
    scale = np.maximum(spread, _MIN_SPREAD_SHARE * history)
    levels = np.arcsinh((np.stack([windows[:, :, column] for column in (0, 2, 4)]) - centre) / scale)  # (3, B, rows)
    origin, step = _origin_and_step(levels[0, :, :context], missing)
    moved = np.arcsinh((levels - origin) / step)
    covariates = windows.astype(np.float32)
    covariates[:, :, 0] = moved[0]
    for place, column in ((1, 2), (2, 4)):
        covariates[:, :, column] = moved[place] * (windows[:, :, column + 1] > 0)
    target, observed = covariates[:, context:, 0].copy(), 1 - windows[:, context:, 1].astype(np.float32)
    covariates[:, :context, 0][missing] = 0
    covariates[:, context:, :2] = 0
    relative_volatility = np.log(history / scale).clip(-4, 4)
    return {
        "encoder_cont": np.ascontiguousarray(covariates[:, :context, :_SCALE]),
        "decoder_cont": np.ascontiguousarray(covariates[:, context:, :_SCALE]),
        "static": np.concatenate([relative_volatility, origin.clip(-6, 6), np.log(step)], axis=1).astype(np.float32),
        "target": target,
        "observed": observed,
        "frame": np.concatenate([centre, scale, origin, step], axis=1),
    }


def _origin_and_step(level: Floats, missing: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """(B, 1) the origin of the forecast, and (B, 1) the mean absolute change, of levels (B, context).

    The origin is the last value times the lag-1 correlation over 0.8, at most 1: the full value if the level wanders as
    prices do, zero if it is noise around a median. The correlation is one minus half the squared ratio of mean absolute
    change and deviation (von Neumann, 1941, with absolute values in place of squares).
    """
    step = _mean(np.abs(np.diff(level, axis=1)), missing[:, 1:] | missing[:, :-1]) * _MEAN_DEVIATION
    step = np.maximum(step, _MIN_STEP)
    deviation = _mean(np.abs(level - _median(level, missing)), missing) * _MEAN_DEVIATION
    correlation = 1 - step**2 / (2 * deviation**2 + 1e-12)
    return level[:, -1:] * (correlation / _FULL_ORIGIN_CORRELATION).clip(0, 1), step


def _median(values: Floats, unseen: NDArray[np.bool_]) -> Floats:
    """(B, 1) the lower median of the observed values among (B, N); 0 if there is none."""
    count = (~unseen).sum(axis=1, keepdims=True)
    ordered = np.sort(np.where(unseen, np.inf, values), axis=1)
    median = np.take_along_axis(ordered, np.maximum(count - 1, 0) // 2, axis=1)
    return np.where(count > 0, median, 0.0)


def _mean(values: Floats, unseen: NDArray[np.bool_]) -> Floats:
    """(B, 1) the mean of the observed values among (B, N); 0 if there is none."""
    count = (~unseen).sum(axis=1, keepdims=True)
    total: Floats = np.where(unseen, 0.0, values).sum(axis=1, keepdims=True) / np.maximum(count, 1)
    return total


def denormalise(forecast: Floats, frame: Floats) -> Floats:
    """A forecast (B, horizon, Q) in the scale of a batch's ``target``, converted to the units of the series; ``frame``
    is (B, 4)."""
    centre, scale, origin, step = frame.T[..., None, None]
    level = origin + step * np.sinh(np.clip(forecast, -_MAX_STEPS, _MAX_STEPS))
    values: Floats = centre + scale * np.sinh(np.clip(level, -_MAX_LEVEL, _MAX_LEVEL))
    return values


def windows_of(series: Iterable[Series], *, context: int, horizon: int, stride: int = 1) -> Windows:
    """The windows of ``series``."""
    tables = [covariate_table(item, context=context, horizon=horizon) for item in series]
    return Windows(tables, context=context, horizon=horizon, stride=stride)
