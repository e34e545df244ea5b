"""Peers that run here where they are installed (the extra ``bench``): PyOD's detectors, and Fracast's forecasts.

PyOD (Zhao et al., JMLR 2019): isolation forest and nearest neighbours over windows of 16 rows, learnt on the
probationary period. Fracast: a small foundation model of time series whose weights are in its wheel.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from apps.finance.datasets.windows import last_seen
from apps.finance.metrics.nab import Rows, probation
from apps.finance.types import Floats, Series

_ROWS = 16
_MIN_ROWS = 64
LEVELS = (0.1, 0.5, 0.9)
"""The levels of quantiles that Fracast and this application's network both have."""


def installed(name: str) -> bool:
    """Whether a library is there."""
    return importlib.util.find_spec(name) is not None


def pyod_scores(series: Series) -> dict[str, Floats]:
    """(N,) scores in [0, 1] by detector; empty where PyOD is not installed.

    A score x is the decision function less its mean over its deviation in the probationary period, as x / (x + 10).
    """
    if not installed("pyod"):
        return {}
    from pyod.models.iforest import IForest
    from pyod.models.knn import KNN

    values = last_seen(series.target)
    first = int(np.argmax(np.isfinite(values)))
    values, learnt = values[first:], max(probation(len(series)), _MIN_ROWS) - first
    found = {}
    detectors: dict[str, Any] = {"isolation forest": IForest(random_state=0), "nearest neighbours": KNN()}
    for name, detector in detectors.items():
        scores = np.zeros(len(series))
        if len(values) > learnt > 2 * _ROWS:
            middle, spread = values[:learnt].mean(), max(float(values[:learnt].std()), 1e-9)
            windows = sliding_window_view((values - middle) / spread, _ROWS)
            detector.fit(windows[: learnt - _ROWS + 1])
            usual = detector.decision_scores_
            off = (detector.decision_function(windows) - usual.mean()) / max(float(usual.std()), 1e-9)
            scores[first + _ROWS - 1 :] = np.maximum(off, 0) / (np.maximum(off, 0) + 10)
        found[f"PyOD {name}"] = scores
    return found


class Fracast:
    """Fracast's forecasts."""

    def __init__(self) -> None:
        from fracast import FracastModel

        self._model = FracastModel.from_pretrained(weights="fp32")

    def __call__(self, values: Floats, starts: Rows, horizon: int) -> Floats:
        """(B, horizon, Q) the quantiles at ``levels`` of the rows from each of ``starts`` on; up to 2,048 rows before
        it are seen."""
        seen = np.full((len(starts), self._model.context_length), np.nan)
        for row, start in enumerate(starts.tolist()):
            before = values[max(0, start - seen.shape[1]) : start]
            seen[row, seen.shape[1] - len(before) :] = before
        made = self._model.forecast_batch(seen, horizon=horizon)
        places = [self._model.quantiles.index(level) for level in LEVELS]
        return np.asarray(made[..., places], np.float64)
