"""What stands out of the usual mixture of frequencies: the spectral residual."""

from __future__ import annotations

import numpy as np

from apps.finance.datasets.windows import last_seen
from apps.finance.inference.detectors.detector import ForecastedSeries
from apps.finance.inference.detectors.ranked import RankedStatistic
from apps.finance.types import Floats

_ROWS, _AHEAD = 64, 5
_NEIGHBOURS = 3
_LOCAL = 21
_BATCH = 4096


def spectral_residual(one: ForecastedSeries, memory: int) -> Floats:
    """(N,) how far the saliency of the last of 64 rows exceeds the mean saliency of the 21 before it.

    Ren et al., KDD 2019: the amplitudes of the Fourier transform, their logarithm less its mean over 3 neighbours, and
    back. As there, the rows are continued by 5 estimated ones, so that the last row does not stand at the edge.
    """
    values = last_seen(one.series.target)
    length, result = len(values), np.full(len(values), np.nan)
    first = int(np.argmax(np.isfinite(values)))
    if length - first < _ROWS:
        return result
    parts = np.lib.stride_tricks.sliding_window_view(values[first:], _ROWS)
    for start in range(0, len(parts), _BATCH):
        these = parts[start : start + _BATCH]
        steps = (these[:, -2:-1] - these[:, -7:-2]) / np.arange(5, 0, -1)
        ahead = these[:, -6:-5] + steps.mean(axis=1, keepdims=True) * 5
        whole = np.concatenate([these, np.repeat(ahead, _AHEAD, axis=1)], axis=1)
        spectrum = np.fft.fft(whole, axis=1)
        amplitude = np.abs(spectrum) + 1e-8 * (1 + np.abs(whole).mean(axis=1, keepdims=True))
        logs = np.log(amplitude)
        sums = np.cumsum(np.pad(logs, ((0, 0), (_NEIGHBOURS, 0))), axis=1)
        number = np.minimum(np.arange(1, logs.shape[1] + 1), _NEIGHBOURS)
        local = (sums[:, _NEIGHBOURS:] - sums[:, :-_NEIGHBOURS]) / number
        saliency = np.abs(np.fft.ifft(spectrum / amplitude * np.exp(logs - local), axis=1))[:, :_ROWS]
        before = saliency[:, -1 - _LOCAL : -1].mean(axis=1)
        rows = first + start + _ROWS - 1 + np.arange(len(these))
        result[rows] = (saliency[:, -1] - before) / np.maximum(before, 1e-9)
    bounded: Floats = np.maximum(result, -1)
    return bounded


DETECTOR = RankedStatistic(word="saliency", statistic=spectral_residual)
