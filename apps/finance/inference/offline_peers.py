"""Peers that run here if they are installed (the extra ``bench``): PyOD's detectors, and Fracast's forecasts.

PyOD (Zhao et al., JMLR 2019): isolation forest and nearest neighbours over windows of 16 rows, trained on the
probationary period. Fracast: a small foundation model for time series whose weights are in its wheel.
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
"""The quantile levels that both Fracast and this application's network have."""


def installed(name: str) -> bool:
    """Whether a package is installed."""
    return importlib.util.find_spec(name) is not None


def pyod_scores(series: Series) -> dict[str, Floats]:
    """(N,) scores in [0, 1] by detector; empty if PyOD is not installed.

    With x the decision function minus its mean, over its deviation, both from the probationary period, the score is x /
    (x + 10).
    """
    if not installed("pyod"):
        return {}
    from pyod.models.iforest import IForest
    from pyod.models.knn import KNN

    values = last_seen(series.target)
    first = int(np.argmax(np.isfinite(values)))
    values, training_rows = values[first:], max(probation(len(series)), _MIN_ROWS) - first
    scores_by_name = {}
    detectors: dict[str, Any] = {"isolation forest": IForest(random_state=0), "nearest neighbours": KNN()}
    for name, detector in detectors.items():
        scores = np.zeros(len(series))
        if len(values) > training_rows > 2 * _ROWS:
            mean, spread = values[:training_rows].mean(), max(float(values[:training_rows].std()), 1e-9)
            windows = sliding_window_view((values - mean) / spread, _ROWS)
            detector.fit(windows[: training_rows - _ROWS + 1])
            training_scores = detector.decision_scores_
            deviation = (detector.decision_function(windows) - training_scores.mean()) / max(
                float(training_scores.std()), 1e-9
            )
            scores[first + _ROWS - 1 :] = np.maximum(deviation, 0) / (np.maximum(deviation, 0) + 10)
        scores_by_name[f"PyOD {name}"] = scores
    return scores_by_name


class Fracast:
    """Fracast's forecasts."""

    def __init__(self) -> None:
        from fracast import FracastModel

        self._model = FracastModel.from_pretrained(weights="fp32")

    def __call__(self, values: Floats, starts: Rows, horizon: int) -> Floats:
        """(B, horizon, Q) the quantiles at ``LEVELS`` of the rows from each of ``starts`` on; the model sees up to
        2,048 earlier rows."""
        contexts = np.full((len(starts), self._model.context_length), np.nan)
        for row, start in enumerate(starts.tolist()):
            context = values[max(0, start - contexts.shape[1]) : start]
            contexts[row, contexts.shape[1] - len(context) :] = context
        quantiles = self._model.forecast_batch(contexts, horizon=horizon)
        level_indices = [self._model.quantiles.index(level) for level in LEVELS]
        return np.asarray(quantiles[..., level_indices], np.float64)
