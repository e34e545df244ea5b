"""Forecasts of whole series by a trained forecaster: batched over windows, each row from earlier rows alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from apps.finance.datasets.windows import Covariates, Windows, denormalise, tabulate
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
_FARTHEST = 50.0
_MIN_BAND = 1e-3
CPU_BATCH, _AROUND, _GPU_BATCH = 128, 256, 2048
"""On a CPU a small batch stays in its cache, and a larger one has fewer operations: of 64 to 256 windows the middle is
nearly as fast as the most, and leaves less of a short series' last batch empty. What is around the network takes 256 at
once: a program computes them in parts."""


AnyForecaster: TypeAlias = "Forecaster | ProgramForecaster | LibraryForecaster | ProgramLibraryForecaster"
_Batch: TypeAlias = tuple[Rows, Floats, Floats]
"""First rows of forecasts (B,), their quantiles (B, horizon, Q) in units, and normal scores of the values in them."""


def forecast(
    model: AnyForecaster,
    series: Sequence[Series],
    *,
    stride: int,
    device: str = "cpu",
    batch: int | None = None,
    first: int = 0,
) -> list[Forecast]:
    """Forecasts each of ``series`` from its row ``first`` on with a trained network, one window every ``stride`` rows.

    A row is forecast by ``horizon / stride`` windows. Its quantiles are those of the latest one; ``surprise`` (N, K)
    has the normal score of the observed value for each of them, the latest first; NaN where there is none, as in
    windows before which nothing was observed.
    """
    horizon = model.horizon
    if batch is None:
        on_cpu = _AROUND if isinstance(model, ProgramForecaster) else CPU_BATCH
        batch = _GPU_BATCH if device.startswith("cuda") else on_cpu
    if horizon % stride:
        raise ValueError(f"the stride {stride} does not divide the horizon {horizon}")
    made = []
    for one in series:
        library = library_network(model)
        if library is not None:
            levels, batches = library.quantiles, _library_batches(library, one, stride, device, batch, first)
        else:
            levels, batches = QUANTILES, _batches(model, one, stride, device, batch, first)
        made.append(_assemble(batches, len(one), levels, horizon=horizon, stride=stride))
    return made


def library_network(model: AnyForecaster) -> LibraryForecaster | ProgramLibraryForecaster | None:
    """The network, where it is the library's own and takes the library's covariates."""
    if isinstance(model, ProgramForecaster):
        return None
    if isinstance(model, ProgramLibraryForecaster):
        return model
    from apps.finance.models.library_tft import LibraryForecaster

    return model if isinstance(model, LibraryForecaster) else None


def covariates_of(model: AnyForecaster) -> tuple[str, ...]:
    """The columns of a table that a network, trained here or elsewhere, takes beside the value."""
    library = library_network(model)
    return () if library is None else columns_taken(library.settings)


def _batches(
    model: AnyForecaster, series: Series, stride: int, device: str, batch: int, first: int
) -> Iterator[_Batch]:
    context, horizon = model.context, model.horizon
    table = tabulate(series, context=context, horizon=horizon)
    tail = np.zeros((horizon - 1, table.rows.shape[1]))
    tail[:, 1], tail[:, -1] = 1, 1  # rows after the end, so that the last window may reach beyond it
    padded = Covariates(np.concatenate([table.rows, tail]))
    windows = Windows([padded], context=context, horizon=horizon, stride=stride)
    observed = np.flatnonzero(np.isfinite(series.target))
    known = observed[0] if len(observed) else len(series)
    windows.starts = windows.starts[windows.starts > max(int(known), first - horizon)]
    for start in report_each(range(0, len(windows), batch), "forecasting, part"):
        indices = np.arange(start, min(start + batch, len(windows)))
        part = windows.arrays(indices)
        expected = _quantiles(model, part, device)
        scores = normal_scores(part["target"].astype(np.float64), expected)
        scores[part["observed"] < 0.5] = np.nan
        # The window's first row is `start - context` in the series: the table has `context` rows in front.
        yield windows.starts[indices], denormalise(expected, part["frame"]), scores


def _quantiles(model: AnyForecaster, windows: Arrays, device: str) -> Floats:
    """(B, horizon, Q), normalised."""
    if isinstance(model, ProgramForecaster):
        return model.quantiles(windows).astype(np.float64)
    import torch

    inputs = [torch.from_numpy(windows[name]).to(device) for name in ("encoder_cont", "decoder_cont", "static")]
    with torch.inference_mode():
        found: Floats = model(*inputs).float().cpu().numpy().astype(np.float64)
    return found


def _library_batches(
    model: LibraryForecaster | ProgramLibraryForecaster,
    series: Series,
    stride: int,
    device: str,
    batch: int,
    earliest: int,
) -> Iterator[_Batch]:
    """Forecasts by a network of the library: from rows that have a whole context before them."""
    import torch

    from apps.finance.models.library_tft import LibraryWindows

    windows = LibraryWindows(series, model.settings, context=model.context, horizon=model.horizon)
    starts = np.arange(model.context, len(series), stride, dtype=np.int64)
    starts = starts[starts > earliest - model.horizon]
    values = np.concatenate([series.target, np.full(model.horizon, np.nan)])
    for start in report_each(range(0, len(starts), batch), "forecasting, part"):
        first = starts[start : start + batch]
        inputs = [tensor.to(device) for tensor in windows.batch(first)]
        with torch.inference_mode():
            expected = model(*inputs).float().cpu().numpy().astype(np.float64)
        actual = values[first[:, None] + np.arange(model.horizon)]
        # In units of each window's spread, so that the least band of a certain forecast means the same everywhere.
        seen = values[first[:, None] - model.context + np.arange(model.context)]
        spread = np.maximum(np.nan_to_num(np.nanstd(seen, axis=1)), 1e-9)[:, None]
        scores = normal_scores(np.nan_to_num(actual / spread), expected / spread[..., None], model.quantiles)
        scores[~np.isfinite(actual)] = np.nan
        yield first, expected, scores


def _assemble(
    batches: Iterable[_Batch], length: int, levels: tuple[float, ...], *, horizon: int, stride: int
) -> Forecast:
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
            # Windows come in order, so that a later one writes over an earlier one's longer lead.
            band = values[:, columns].reshape(-1, len(levels))[inside]
            fresh = np.full(len(rows), lead == 0) | np.isnan(quantiles[rows, 0])
            quantiles[rows[fresh]] = band[fresh]
    return Forecast(levels=levels, quantiles=quantiles, surprise=surprise)


def normal_scores(values: Floats, quantiles: Floats, levels: tuple[float, ...] = QUANTILES) -> Floats:
    """(...,) the standard normal score of ``values`` (...,) in distributions given by rising ``quantiles`` (..., Q).

    ``levels`` (Q,) are the quantiles' own, with the median among them. Linear between the quantiles; beyond the
    outermost at the slope from the median to that one, up to +-50.
    """
    normal = NORMAL_SCORES if levels == QUANTILES else tuple(NormalDist().inv_cdf(level) for level in levels)
    middle, number = levels.index(0.5), len(levels)
    median = quantiles[..., middle]
    # Distances from the median, made to rise strictly: a forecast may be certain.
    offsets = quantiles - median[..., None]
    least = _MIN_BAND * np.abs(np.asarray(normal))
    offsets = np.sign(np.arange(number) - middle) * np.maximum(np.abs(offsets), least)
    away = values - median
    score = np.zeros_like(away)
    for sign, order in ((1, range(middle, number)), (-1, range(middle, -1, -1))):
        steps = list(order)
        side = sign * away > 0
        for near, far in itertools.pairwise(steps):
            low, high = offsets[..., near], offsets[..., far]
            width = np.where(np.abs(high - low) > 1e-9, high - low, np.inf)
            share = np.clip((away - low) / width, 0, 1)
            score += np.where(side, share * (normal[far] - normal[near]), 0)
        beyond = sign * (away - offsets[..., steps[-1]])
        slope = normal[steps[-1]] / offsets[..., steps[-1]]
        score += np.where(side & (beyond > 0), sign * beyond * slope, 0)
    return np.clip(score, -_FARTHEST, _FARTHEST)
