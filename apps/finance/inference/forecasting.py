"""Forecasts of whole series by a trained forecaster: batched over windows, each row from earlier rows alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, TypeAlias, cast

import numpy as np

from apps.finance.datasets.windows import MIN_CONTEXT, Covariates, Windows, covariate_table, denormalise
from apps.finance.metrics.nab import Rows
from apps.finance.models.calendar import columns_taken
from apps.finance.models.settings import ProgramForecaster, ProgramLibraryForecaster
from apps.finance.types import QUANTILES, Floats, Forecast, Series
from shared.deploy.programs.program import Arrays
from shared.progress import report_each

if TYPE_CHECKING:
    from apps.finance.models.library_tft import LibraryForecaster
    from apps.finance.models.tft import Forecaster

NORMAL_SCORES = (-2.0537489, -1.2815516, -0.6744898, 0.0, 0.6744898, 1.2815516, 2.0537489)
"""The standard normal distribution's quantiles at ``QUANTILES``."""
_MAX_NORMAL_SCORE = 50.0
_MIN_BAND_PER_SCORE = 1e-3
_MIN_RELATIVE_SPREAD, _MIN_LEVEL = 1e-9, 1e-20
"""The minimum spread of a window relative to its largest value, which counts as 1 if it is larger; and the minimum of
that."""
CPU_BATCH, _PROGRAM_BATCH, _GPU_BATCH = 128, 256, 2048
"""A small batch stays in the CPU's cache, and a larger one has fewer operations. Among 64 to 256 windows the middle is
nearly as fast as the fastest and wastes less of a short series' last batch. Work outside the network uses 256 at once;
a program splits them into its own batches."""


AnyForecaster: TypeAlias = "Forecaster | ProgramForecaster | LibraryForecaster | ProgramLibraryForecaster"
_Batch: TypeAlias = tuple[Rows, Floats, Floats]
"""First rows of forecasts (B,), quantiles (B, horizon, Q) in the units of the series, and the values' normal scores (B,
horizon)."""


def forecast(
    model: AnyForecaster,
    series: Sequence[Series],
    *,
    stride: int,
    device: str = "cpu",
    batch: int | None = None,
    first: int = 0,
    rows_before: int = 0,
) -> list[Forecast]:
    """Forecasts each of ``series`` from its row ``first`` on with a trained network, one window every ``stride`` rows.

    Each row is forecast by ``horizon / stride`` windows. Its quantiles are those of the latest window; ``surprise`` (N,
    K) has the normal score of the observed value for each window, the latest first; NaN where there is no forecast, as
    before the first observed value. ``rows_before`` is the number of each series' first row, if it is the end of a
    longer series: its windows then lie as in the whole. Raises ValueError if ``stride`` does not divide the horizon.
    """
    return list(
        forecast_each(model, series, stride=stride, device=device, batch=batch, first=first, rows_before=rows_before)
    )


def forecast_each(
    model: AnyForecaster,
    series: Sequence[Series],
    *,
    stride: int,
    device: str = "cpu",
    batch: int | None = None,
    first: int = 0,
    rows_before: int = 0,
) -> Iterator[Forecast]:
    """As ``forecast``, one series after the other. Short series share batches, because a program computes whole batches
    only."""
    horizon = model.horizon
    if batch is None:
        on_cpu = _PROGRAM_BATCH if isinstance(model, ProgramForecaster) else CPU_BATCH
        batch = _GPU_BATCH if device.startswith("cuda") else on_cpu
    if horizon % stride:
        raise ValueError(f"the stride {stride} does not divide the horizon {horizon}")
    library = library_network(model)
    if library is not None:
        for item in series:
            batches = _library_batches(library, item, stride, device, batch, first, rows_before)
            yield _assemble(batches, len(item), library.quantiles, horizon=horizon, stride=stride)
        return
    own = cast("Forecaster | ProgramForecaster", model)
    for group in _groups(series, batch * stride):
        yield from _forecast_group(own, group, stride, device, batch, first, rows_before)


def _groups(series: Sequence[Series], max_rows: int) -> Iterator[list[Series]]:
    """Consecutive series with at most ``max_rows`` rows together, or a single longer one."""
    group: list[Series] = []
    for item in series:
        if group and sum(map(len, group)) + len(item) > max_rows:
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def library_network(model: AnyForecaster) -> LibraryForecaster | ProgramLibraryForecaster | None:
    """The network if it takes the covariates of pytorch-forecasting's data sets, else None."""
    if isinstance(model, ProgramForecaster):
        return None
    if isinstance(model, ProgramLibraryForecaster):
        return model
    from apps.finance.models.library_tft import LibraryForecaster

    return model if isinstance(model, LibraryForecaster) else None


def covariates_of(model: AnyForecaster) -> tuple[str, ...]:
    """The columns of a table that a network, trained here or elsewhere, takes in addition to the value."""
    library = library_network(model)
    return () if library is None else columns_taken(library.settings)


def _forecast_group(
    model: Forecaster | ProgramForecaster,
    group: Sequence[Series],
    stride: int,
    device: str,
    batch: int,
    first: int,
    rows_before: int,
) -> Iterator[Forecast]:
    """Forecasts by the application's own network, from each series' first observed value on.

    The covariate tables lie behind each other, each with ``context`` rows in front and a horizon's rows after its end.
    """
    context, horizon = model.context, model.horizon
    tables = []
    for item in group:
        table = covariate_table(item, context=context, horizon=horizon)
        padding = np.zeros((horizon - 1, table.rows.shape[1]))
        padding[:, 1], padding[:, -1] = 1, 1  # missing rows after the end, so that the last window can extend beyond it
        tables.append(Covariates(np.concatenate([table.rows, padding])))
    first_rows = [MIN_CONTEXT + -rows_before % stride] * len(group) if rows_before else None
    windows = Windows(tables, context=context, horizon=horizon, stride=stride, first_rows=first_rows)
    offsets = np.cumsum([0, *(len(table.rows) for table in tables[:-1])])
    earliest = offsets + [max(_first_observed(item), first - horizon) for item in group]
    windows.starts = windows.starts[windows.starts > earliest[np.searchsorted(offsets, windows.starts, "right") - 1]]
    whole = _assemble(
        _batches(model, windows, device, batch), len(windows.flat), QUANTILES, horizon=horizon, stride=stride
    )
    for item, offset in zip(group, offsets.tolist(), strict=True):
        rows = slice(offset + context, offset + context + len(item))
        yield Forecast(levels=QUANTILES, quantiles=whole.quantiles[rows], surprise=whole.surprise[rows])


def _first_observed(series: Series) -> int:
    """The first row with a value; the number of rows if there is none."""
    observed = np.isfinite(series.target)
    return int(np.argmax(observed)) if observed.any() else len(series)


def _batches(model: Forecaster | ProgramForecaster, windows: Windows, device: str, batch: int) -> Iterator[_Batch]:
    """Forecasts by the application's own network; rows are those of the windows' flat table."""
    for start in report_each(range(0, len(windows), batch), "forecasting, part"):
        indices = np.arange(start, min(start + batch, len(windows)))
        arrays = windows.arrays(indices)
        expected = _quantiles(model, arrays, device)
        scores = normal_scores(arrays["target"].astype(np.float64), expected)
        scores[arrays["observed"] < 0.5] = np.nan
        yield windows.starts[indices] + windows.context, denormalise(expected, arrays["frame"]), scores


def _quantiles(model: Forecaster | ProgramForecaster, windows: Arrays, device: str) -> Floats:
    """(B, horizon, Q) the normalised quantiles."""
    if isinstance(model, ProgramForecaster):
        return model.quantiles(windows).astype(np.float64)
    import torch

    inputs = [torch.from_numpy(windows[name]).to(device) for name in ("encoder_cont", "decoder_cont", "static")]
    with torch.inference_mode():
        quantiles: Floats = model(*inputs).float().cpu().numpy().astype(np.float64)
    return quantiles


def _library_batches(
    model: LibraryForecaster | ProgramLibraryForecaster,
    series: Series,
    stride: int,
    device: str,
    batch: int,
    earliest: int,
    rows_before: int,
) -> Iterator[_Batch]:
    """Forecasts by a network of pytorch-forecasting, from rows that have a full context before them."""
    import torch

    from apps.finance.models.library_tft import LibraryWindows

    starts = np.arange(model.context + -rows_before % stride, len(series), stride, dtype=np.int64)
    starts = starts[starts > earliest - model.horizon]
    windows = LibraryWindows(
        series,
        model.settings,
        context=model.context,
        horizon=model.horizon,
        earliest=int(starts[0]) if len(starts) else 0,
        rows_before=rows_before,
    )
    values = np.concatenate([series.target, np.full(model.horizon, np.nan)])
    for start in report_each(range(0, len(starts), batch), "forecasting, part"):
        first = starts[start : start + batch]
        inputs = [tensor.to(device) for tensor in windows.batch(first)]
        with torch.inference_mode():
            expected = model(*inputs).float().cpu().numpy().astype(np.float64)
        actual = values[first[:, None] + np.arange(model.horizon)]
        # In units of each window's spread, so that the minimum band width means the same for every series.
        context_values = values[first[:, None] - model.context + np.arange(model.context)]
        spread, has_values = np.zeros(len(first)), np.isfinite(context_values).any(axis=1)
        spread[has_values] = np.nanstd(context_values[has_values], axis=1)
        largest = np.abs(np.nan_to_num(context_values)).max(axis=1)
        spread = np.maximum(spread, _MIN_RELATIVE_SPREAD * largest.clip(_MIN_LEVEL, 1))[:, None]
        scores = normal_scores(np.nan_to_num(actual / spread), expected / spread[..., None], model.quantiles)
        scores[~np.isfinite(actual)] = np.nan
        yield first, expected, scores


def _assemble(
    batches: Iterable[_Batch], length: int, levels: tuple[float, ...], *, horizon: int, stride: int
) -> Forecast:
    """The forecast of a series of ``length`` rows from the batches of its windows."""
    leads = horizon // stride
    quantiles = np.full((length, len(levels)), np.nan)
    surprise = np.full((length, leads), np.nan)
    for first, values, scores in batches:
        for lead in range(leads):
            columns = np.arange(lead * stride, (lead + 1) * stride)
            rows = (first[:, None] + columns).ravel()
            inside = rows < length
            rows = rows[inside]
            surprise[rows, lead] = scores[:, columns].reshape(-1)[inside]
            # Windows come in order, so that a later window overwrites the longer lead of an earlier one.
            values_of_lead = values[:, columns].reshape(-1, len(levels))[inside]
            is_newer = np.full(len(rows), lead == 0) | np.isnan(quantiles[rows, 0])
            quantiles[rows[is_newer]] = values_of_lead[is_newer]
    return Forecast(levels=levels, quantiles=quantiles, surprise=surprise)


def normal_scores(values: Floats, quantiles: Floats, levels: tuple[float, ...] = QUANTILES) -> Floats:
    """(...,) the standard normal score of ``values`` (...,) in distributions given by increasing ``quantiles`` (...,
    Q).

    ``levels`` (Q,) are the levels of the quantiles and include the median. Linear between the quantiles; beyond the
    outermost, the slope is that from the median to it. Clipped to ±50.
    """
    level_scores = NORMAL_SCORES if levels == QUANTILES else tuple(NormalDist().inv_cdf(level) for level in levels)
    median_index, number = levels.index(0.5), len(levels)
    median = quantiles[..., median_index]
    # Distances from the median, with a minimum width, because all quantiles of a forecast may be equal.
    offsets = quantiles - median[..., None]
    min_offsets = _MIN_BAND_PER_SCORE * np.abs(np.asarray(level_scores))
    offsets = np.sign(np.arange(number) - median_index) * np.maximum(np.abs(offsets), min_offsets)
    deviation = values - median
    score = np.zeros_like(deviation)
    for sign, order in ((1, range(median_index, number)), (-1, range(median_index, -1, -1))):
        side_order = list(order)
        on_side = sign * deviation > 0
        for inner, outer in itertools.pairwise(side_order):
            low, high = offsets[..., inner], offsets[..., outer]
            width = np.where(np.abs(high - low) > 1e-9, high - low, np.inf)
            share = np.clip((deviation - low) / width, 0, 1)
            score += np.where(on_side, share * (level_scores[outer] - level_scores[inner]), 0)
        excess = sign * (deviation - offsets[..., side_order[-1]])
        slope = level_scores[side_order[-1]] / offsets[..., side_order[-1]]
        score += np.where(on_side & (excess > 0), sign * excess * slope, 0)
    return np.clip(score, -_MAX_NORMAL_SCORE, _MAX_NORMAL_SCORE)
