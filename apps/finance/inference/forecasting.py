"""Forecasts of whole series by a trained forecaster: batched over windows, each row from earlier rows alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from apps.finance.datasets.windows import Covariates, Windows, denormalise, tabulate
from apps.finance.models.tft import QUANTILES, Forecaster
from apps.finance.types import Floats, Forecast, Series

NORMAL_SCORES = (-2.0537489, -1.2815516, -0.6744898, 0.0, 0.6744898, 1.2815516, 2.0537489)
"""The standard normal distribution's quantiles at ``QUANTILES``."""
_FARTHEST = 50.0
_LEAST_BAND = 1e-3
_CPU_BATCH, _GPU_BATCH = 64, 2048
"""On a CPU a small batch stays in its cache: 64 windows at once are up to twice as fast as 512."""


@torch.inference_mode()
def forecast(
    model: Forecaster, series: Sequence[Series], *, stride: int, device: str = "cpu", batch: int | None = None
) -> list[Forecast]:
    """Forecasts each of ``series`` with a ``Forecaster``, one window every ``stride`` rows.

    A row is forecast by ``horizon / stride`` windows. Its quantiles are those of the latest one; ``surprise`` (N, K)
    has the normal score of the observed value for each of them, the latest first; NaN where there is none, as in
    windows before which nothing was observed.
    """
    context, horizon = model.context, model.horizon
    batch = batch or (_GPU_BATCH if device.startswith("cuda") else _CPU_BATCH)
    if horizon % stride:
        raise ValueError(f"the stride {stride} does not divide the horizon {horizon}")
    made = []
    for one in series:
        table = tabulate(one, context=context, horizon=horizon)
        tail = np.zeros((horizon - 1, table.rows.shape[1]))
        tail[:, 1], tail[:, -1] = 1, 1  # rows after the end, so that the last window may reach beyond it
        padded = Covariates(np.concatenate([table.rows, tail]))
        windows = Windows([padded], context=context, horizon=horizon, stride=stride)
        observed = np.flatnonzero(np.isfinite(one.target))
        windows.starts = windows.starts[windows.starts > (observed[0] if len(observed) else len(one))]
        made.append(_forecast(model, windows, len(one), stride, torch.device(device), batch))
    return made


def _forecast(
    model: Forecaster, windows: Windows, length: int, stride: int, device: torch.device, batch: int
) -> Forecast:
    leads = windows.horizon // stride
    quantiles = np.full((length, len(QUANTILES)), np.nan)
    surprise = np.full((length, leads), np.nan)
    for start in range(0, len(windows), batch):
        indices = np.arange(start, min(start + batch, len(windows)))
        part = windows.batch(indices, None)
        inputs = [part[name].to(device) for name in ("encoder_cont", "decoder_cont", "static")]
        expected = model(*inputs).float().cpu().numpy().astype(np.float64)  # (B, horizon, Q), normalised
        scores = normal_scores(part["target"].numpy().astype(np.float64), expected)
        scores[part["observed"].numpy() < 0.5] = np.nan
        values = denormalise(expected, part["frame"].numpy())
        # The window's first row is `start - context` in the series: the table has `context` rows in front.
        first = windows.starts[indices]
        for lead in range(leads):
            columns = np.arange(lead * stride, (lead + 1) * stride)
            rows = (first[:, None] + columns).ravel()
            inside = rows < length
            rows = rows[inside]
            surprise[rows, lead] = scores[:, columns].reshape(-1)[inside]
            # Windows come in order, so that a later one writes over an earlier one's longer lead.
            band = values[:, columns].reshape(-1, len(QUANTILES))[inside]
            fresh = np.full(len(rows), lead == 0) | np.isnan(quantiles[rows, 0])
            quantiles[rows[fresh]] = band[fresh]
    return Forecast(levels=QUANTILES, quantiles=quantiles, surprise=surprise)


def normal_scores(values: Floats, quantiles: Floats) -> Floats:
    """(...,) the standard normal score of ``values`` (...,) in distributions given by rising ``quantiles`` (..., Q).

    Linear between the quantiles; beyond the outermost at the slope from the median to that one, up to +-50.
    """
    middle = len(QUANTILES) // 2
    median = quantiles[..., middle]
    # Distances from the median, made to rise strictly: a forecast may be certain.
    offsets = quantiles - median[..., None]
    least = _LEAST_BAND * np.abs(np.asarray(NORMAL_SCORES))
    offsets = np.sign(np.arange(len(QUANTILES)) - middle) * np.maximum(np.abs(offsets), least)
    away = values - median
    score = np.zeros_like(away)
    for sign, order in ((1, range(middle, len(QUANTILES))), (-1, range(middle, -1, -1))):
        steps = list(order)
        side = sign * away > 0
        for near, far in itertools.pairwise(steps):
            low, high = offsets[..., near], offsets[..., far]
            width = np.where(np.abs(high - low) > 1e-9, high - low, np.inf)
            share = np.clip((away - low) / width, 0, 1)
            score += np.where(side, share * (NORMAL_SCORES[far] - NORMAL_SCORES[near]), 0)
        beyond = sign * (away - offsets[..., steps[-1]])
        slope = NORMAL_SCORES[steps[-1]] / offsets[..., steps[-1]]
        score += np.where(side & (beyond > 0), sign * beyond * slope, 0)
    return np.clip(score, -_FARTHEST, _FARTHEST)
