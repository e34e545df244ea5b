"""From detectors to one score a row: how improbable the row is, given what the series has done before.

Each detector gives a row a tail probability (see ``detectors``). A row's score is -log10 of the smallest over 10.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from apps.finance.inference.detectors import DETECTORS
from apps.finance.inference.detectors.detector import Detector, ForecastedSeries, Ranking
from apps.finance.types import Floats, Forecast, Series


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What turns statistics into scores and events; kept in an artifact's manifest.

    ``prior`` has what each detector has learnt from normal series, by its name; it counts as ``prior_rows`` earlier
    rows. ``tail`` is the share of rows that make up the tail, ``memory`` the number of rows that make up the past.
    ``quiet_rows`` is how long after a detection only a stronger one counts, by ``margin`` in score. ``threshold`` is
    the score from which a row begins an event.
    """

    prior: Mapping[str, list[float]] = field(default_factory=dict)
    prior_rows: float = 1000.0
    tail: float = 0.02
    memory: int = 8000
    quiet_rows: int = 120
    margin: float = 0.2
    threshold: float = 0.4

    def detectors(self) -> dict[str, Detector]:
        """The detectors as calibrated."""
        ranking = Ranking(prior_rows=self.prior_rows, tail=self.tail, memory=self.memory)
        return {name: one.configured(self.prior.get(name, ()), ranking) for name, one in DETECTORS.items()}


def improbability(series: Series, forecast: Forecast, calibration: Calibration) -> dict[str, Floats]:
    """-log10 of each detector's tail probability at each row, (N,); 0 where it cannot tell yet."""
    one = ForecastedSeries(series, forecast)
    return {name: detector.score(one) for name, detector in calibration.detectors().items()}


def combine(channels: Mapping[str, Floats]) -> Floats:
    """(N,) the score in [0, 1] from each detector's -log10 p: the largest over 10."""
    strongest: Floats = np.max(list(channels.values()), axis=0)
    return np.clip(strongest / 10, 0, 1)


def score(series: Series, forecast: Forecast, calibration: Calibration) -> Floats:
    """(N,) the score of each row in [0, 1]: -log10 of the smallest tail probability over 10."""
    return combine(improbability(series, forecast, calibration))
