"""Combines the detectors into one score per row: the root mean square of what different detectors find.

Each detector gives a row a tail probability p (see ``detectors``). Averaging the calibrated scores of different
detectors finds what one alone misses and discounts what one alone exaggerates (Aggarwal and Sathe, SIGKDD Explorations
2015); squaring gives more weight to the few detectors that see a fault than to the many that cannot. The set of
detectors, their weights, the power, and the weight of the detector outside the mean were chosen by the number of
windows hit on synthetic series plus, for each folder of NAB, on the other folders: docs/finance-results.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from apps.finance.inference.conformal import Budget, Control
from apps.finance.inference.detectors import CANDIDATES, DETECTORS, JOINT
from apps.finance.inference.detectors.detector import Detector, ForecastedSeries, Ranking
from apps.finance.types import Floats, Forecast, Series

MAX_IMPROBABILITY = 8.0
"""The maximum -log10 p that a detector contributes."""
WEIGHTS = {"jump": 2.0, "move": 0.0, "high_volatility": 2.0, "level": 2.0}
"""The detectors' weights in the mean, if not 1. ``move`` has no weight; it only names the events that it sees best."""
ALONE = {"low_volatility": 0.6, "joint": 0.6}
"""Detectors outside the mean; the score is at least this factor times what they find."""
BY_FORECAST = {**ALONE, "surprise": 1.0}
"""The same for networks with covariates: only the forecast knows what is normal given the covariates."""
FULL_SCORE_IMPROBABILITY = 5.0
"""The root mean square of -log10 p that gives a score of 1."""
_LEAST_USUAL_VALUE = 1e-4
DEFAULT_EVENTS_PER_1000_ROWS = 0.6
"""3.4 events in a series of NAB's average length after probation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """The settings that turn statistics into scores and events; stored in an artifact's manifest.

    ``prior`` has by name what each detector learnt from normal series; it counts as ``prior_rows`` earlier rows.
    ``tail`` is the share of rows that form the tail, ``memory`` the number of rows that form the past. ``threshold`` is
    the score from which a row begins an event at the start of a series, for the budget of ``events_per_1000_rows``;
    ``budgets`` are pairs of another budget and its threshold. ``step``, ``strong``, ``hold_rows`` and ``margin`` are
    those of ``conformal.Control``. ``by_forecast`` says whether deviations from the forecast count: if the network
    takes covariates.
    """

    prior: Mapping[str, list[float]] = field(default_factory=dict)
    prior_rows: float = 1000.0
    tail: float = 0.02
    memory: int = 8000
    threshold: float = 0.33
    events_per_1000_rows: float = DEFAULT_EVENTS_PER_1000_ROWS
    budgets: Sequence[Sequence[float]] = ()
    step: float = 0.02
    strong: float = 0.2
    hold_rows: float = 60.0
    margin: float = 0.2
    by_forecast: bool = False

    @property
    def alone(self) -> Mapping[str, float]:
        """The detectors outside the mean; see ``combine``."""
        return BY_FORECAST if self.by_forecast else ALONE

    def detectors(self, table: Mapping[str, Detector] = DETECTORS) -> dict[str, Detector]:
        """The detectors of a table with this calibration's settings."""
        ranking = Ranking(prior_rows=self.prior_rows, tail=self.tail, memory=self.memory)
        return {name: detector.configured(self.prior.get(name, ()), ranking) for name, detector in table.items()}

    def control(self, rate: float | None = None, *, fixed: float | None = None) -> Control:
        """How the threshold adapts for a budget of ``rate`` events per 1,000 rows; ``fixed`` is a threshold that does
        not change."""
        if fixed is not None:
            return Control(start=fixed, step=0.0, hold_rows=self.hold_rows, margin=self.margin)
        return Control(
            start=self._start(self.events_per_1000_rows if rate is None else rate),
            step=self.step,
            strong=self.strong,
            hold_rows=self.hold_rows,
            margin=self.margin,
        )

    def budget(self) -> Budget:
        """The default budget."""
        return Budget(per_1000_rows=self.events_per_1000_rows)

    def _start(self, rate: float) -> float:
        """The initial threshold for a budget of ``rate``, interpolated between the calibrated budgets on a log
        scale."""
        pairs = [*self.budgets, (self.events_per_1000_rows, self.threshold)]
        rates, thresholds = np.array(sorted(tuple(pair) for pair in pairs)).T
        return float(np.interp(np.log(max(rate, 1e-9)), np.log(np.maximum(rates, 1e-9)), thresholds))


def improbability(series: Series, forecast: Forecast, calibration: Calibration) -> dict[str, Floats]:
    """-log10 of each detector's tail probability at each row, (N,); 0 where there is too little history."""
    return improbability_of(ForecastedSeries(in_unit(series, unit_of(series)), forecast), calibration)


def unit_of(series: Series) -> float | None:
    """The unit in which the detectors see the values: 1, or for very small values, such as the price of a token, the
    power of two at their first value; None if no value differs from 0 yet.

    Detectors have lower limits for spreads, which are negligible for usual values only. The first value decides, so
    that the unit does not depend on later rows.
    """
    values = np.abs(series.target)
    rows = np.flatnonzero(np.isfinite(values) & (values > 0))
    if series.joint:
        return 1.0  # columns are scored in units of their own changes
    if not len(rows):
        return None
    first = float(values[rows[0]])
    return 1.0 if first >= _LEAST_USUAL_VALUE else float(2.0 ** np.floor(np.log2(first)))


def in_unit(series: Series, unit: float | None) -> Series:
    """The series with its values divided by a unit; unchanged if there is none."""
    if unit is None or unit == 1.0:
        return series
    return replace(series, values={**series.values, series.column: series.target / unit})


def improbability_of(forecasted: ForecastedSeries, calibration: Calibration) -> dict[str, Floats]:
    """The same for a series whose first rows may already have been scored."""
    by_forecast_detectors = {"surprise": CANDIDATES["surprise"]} if calibration.by_forecast else {}
    table = calibration.detectors(JOINT if forecasted.series.joint else {**DETECTORS, **by_forecast_detectors})
    return {name: detector.score(forecasted) for name, detector in table.items()}


def combine(
    channels: Mapping[str, Floats],
    power: float = 2.0,
    weights: Mapping[str, float] = WEIGHTS,
    alone: Mapping[str, float] = ALONE,
) -> Floats:
    """(N,) the score from each detector's -log10 p: their weighted root mean square over 5, at most 1.6.

    Users see at most 1 (``clip_scores``); the range above 1 separates a second event from the first. ``low_volatility``
    looks for changes that are too small, which no other detector can see: it is not part of the mean, and the score is
    at least 0.6 of its -log10 p over 5. The same holds for ``joint``, which scores alone, and for the others in
    ``alone``, each with its own factor. Other values of ``power`` (1 is the mean, infinity the maximum) and ``weights``
    (1 for names that are missing) are for comparison.
    """
    bounded = {name: np.minimum(values, MAX_IMPROBABILITY) for name, values in channels.items()}
    parts = [factor * bounded.pop(name) for name, factor in alone.items() if name in bounded]
    if bounded:
        counted = {name: weights.get(name, 1.0) for name in bounded if weights.get(name, 1.0)}
        values, mean_weights = np.array([bounded[name] for name in counted]), np.array(list(counted.values()))
        mean = (
            values.max(axis=0)
            if np.isinf(power)
            else np.average(values**power, axis=0, weights=mean_weights) ** (1 / power)
        )
        parts.append(mean)
    score: Floats = np.max(parts, axis=0) / FULL_SCORE_IMPROBABILITY
    return score


def clip_scores(scores: Floats) -> Floats:
    """(N,) the scores in [0, 1] that users see."""
    return np.minimum(scores, 1.0)


def score(series: Series, calibration: Calibration, forecast: Forecast | None = None) -> Floats:
    """(N,) the score of each row; see ``combine``. Only with ``by_forecast`` does a detector use the forecast."""
    known_forecast = without_forecast(len(series)) if forecast is None else forecast
    return combine(improbability(series, known_forecast, calibration), alone=calibration.alone)


def without_forecast(rows: int) -> Forecast:
    """An empty forecast, for scores that use none."""
    return Forecast(levels=(0.5,), quantiles=np.full((rows, 1), np.nan), surprise=np.full((rows, 2), np.nan))
