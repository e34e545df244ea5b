"""A value that stands out from the usual mixture of frequencies: the spectral residual."""

from __future__ import annotations

import numpy as np

from apps.finance.datasets.windows import last_seen
from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.types import Floats

_ROWS, _EXTRAPOLATED = 64, 5
_NEIGHBOURS = 3
_LOCAL = 21
_BATCH = 4096


def spectral_residual(forecasted: ForecastedSeries, memory: int) -> Floats:
    """(N,) how far the saliency of the last of 64 rows exceeds the mean saliency of the 21 before it, relative to that
    mean.

    Ren et al., KDD 2019: the log amplitudes of the Fourier transform minus their mean over 3 neighbours, transformed
    back. As in the paper, 5 extrapolated rows are appended, so that the last row is not at the edge.
    """
    values = last_seen(forecasted.series.target)
    length, result = len(values), np.full(len(values), np.nan)
    first = int(np.argmax(np.isfinite(values)))
    if length - first < _ROWS:
        return result
    parts = np.lib.stride_tricks.sliding_window_view(values[first:], _ROWS)
    for start in range(0, len(parts), _BATCH):
        batch = parts[start : start + _BATCH]
        steps = (batch[:, -2:-1] - batch[:, -7:-2]) / np.arange(5, 0, -1)
        extrapolated = batch[:, -6:-5] + steps.mean(axis=1, keepdims=True) * 5
        extended = np.concatenate([batch, np.repeat(extrapolated, _EXTRAPOLATED, axis=1)], axis=1)
        spectrum = np.fft.fft(extended, axis=1)
        amplitude = np.abs(spectrum) + 1e-8 * (1 + np.abs(extended).mean(axis=1, keepdims=True))
        logs = np.log(amplitude)
        sums = np.cumsum(np.pad(logs, ((0, 0), (_NEIGHBOURS, 0))), axis=1)
        number = np.minimum(np.arange(1, logs.shape[1] + 1), _NEIGHBOURS)
        local_mean = (sums[:, _NEIGHBOURS:] - sums[:, :-_NEIGHBOURS]) / number
        saliency = np.abs(np.fft.ifft(spectrum / amplitude * np.exp(logs - local_mean), axis=1))[:, :_ROWS]
        before = saliency[:, -1 - _LOCAL : -1].mean(axis=1)
        rows = first + start + _ROWS - 1 + np.arange(len(batch))
        result[rows] = (saliency[:, -1] - before) / np.maximum(before, 1e-9)
    bounded: Floats = np.maximum(result, -1)
    return bounded


DETECTOR = RankedStatistic(channel="saliency", statistic=spectral_residual)
