"""The forecasts' skill on synthetic series that training has not seen, beside persistence with a trailing spread.

The baseline forecasts the last value, with quantiles of a normal distribution whose deviation is that of the changes in
the same context, times the square root of the rows ahead: the ideal forecast of a random walk of unknown volatility.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from apps.finance.datasets.synth.markets import series as synthetic_series
from apps.finance.datasets.windows import denormalise, windows_of
from apps.finance.inference.forecasting import NORMAL_SCORES
from apps.finance.metrics.quantile_loss import quantile_loss
from apps.finance.models.tft import Forecaster
from apps.finance.types import QUANTILES, Floats, Series

_STREAM = 1 << 22
_SERIES, _PEER_SERIES, _ROWS, _STRIDE = 8, 2, 2000, 24
Quantiles: TypeAlias = Callable[[Floats, NDArray[np.int64], int], Floats]
"""From values (N,), first rows (B,) and the number of rows ahead to quantiles (B, rows, Q)."""
_MEAN_DEVIATION = float(np.sqrt(np.pi / 2))


def relative_loss(
    model: Forecaster, shape: str, *, levels: Sequence[float] = QUANTILES, peer: Quantiles | None = None
) -> float:
    """The model's quantile loss over the baseline's, on 8 series of ``shape`` without anomalies; their geometric mean.

    If ``peer`` is given, its loss over the baseline's, on 2 of the series; its quantiles have the levels
    ``levels``.
    """
    ratios = []
    for index in range(_SERIES if levels == QUANTILES else _PEER_SERIES):
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((0, _STREAM + index))))
        series = synthetic_series(generator, length=_ROWS, shape=shape, anomalies=0.0).series
        own, baseline = losses(model, series, levels, peer)
        if baseline > 0:
            ratios.append(np.log(max(own, 1e-12) / baseline))
    return float(np.exp(np.mean(ratios)))


@torch.inference_mode()
def losses(
    model: Forecaster, series: Series, levels: Sequence[float] = QUANTILES, peer: Quantiles | None = None
) -> tuple[float, float]:
    """The mean quantile losses over ``levels`` on windows of ``series``, in its units: of the model, or of
    ``peer`` if given, and of the baseline."""
    context, horizon = model.context, model.horizon
    windows = windows_of([series], context=context, horizon=horizon, stride=_STRIDE)
    windows.starts = windows.starts[windows.starts >= context]
    device = next(model.parameters()).device
    batch = windows.batch(np.arange(len(windows)), None)
    inputs = [batch[name].to(device) for name in ("encoder_cont", "decoder_cont", "static")]
    forecast = denormalise(model(*inputs).float().cpu().numpy().astype(np.float64), batch["frame"].numpy())
    rows = windows.starts[:, None] + np.arange(-context, horizon)
    values = series.target[rows]
    context_values, actual = values[:, :context], values[:, context:]
    level_indices = [QUANTILES.index(level) for level in levels]
    deviation = _MEAN_DEVIATION * np.abs(np.diff(context_values, axis=1)).mean(axis=1)
    lead_scale = np.sqrt(np.arange(1, horizon + 1))
    persistence = context_values[:, -1, None, None] + deviation[:, None, None] * lead_scale[:, None] * np.asarray(
        NORMAL_SCORES
    )
    predicted = forecast[..., level_indices] if peer is None else peer(series.target, windows.starts, horizon)
    return quantile_loss(actual, predicted, levels), quantile_loss(actual, persistence[..., level_indices], levels)
