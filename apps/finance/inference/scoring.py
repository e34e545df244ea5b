"""From detectors to one score a row: the root mean square of what unlike detectors say of it.

Each detector gives a row a tail probability p (see ``detectors``). Averaging the calibrated scores of unlike detectors
finds what one alone overlooks and forgives what one alone exaggerates (Aggarwal and Sathe, SIGKDD Explorations 2015);
the square lets the few that see a fault speak louder than the many that cannot. Which detectors, how much each counts,
the power, and the weight of the one that stands alone were chosen by the sum of the windows hit on synthetic series
and, for each folder of NAB, on the others: docs/finance-results.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from apps.finance.inference.conformal import Budget, Control
from apps.finance.inference.detectors import CANDIDATES, DETECTORS, JOINT
from apps.finance.inference.detectors.detector import Detector, ForecastedSeries, Ranking
from apps.finance.types import Floats, Forecast, Series

HIGHEST = 8.0
"""No detector's -log10 p counts for more."""
WEIGHTS = {"jump": 2.0, "move": 0.0, "high_volatility": 2.0, "level": 2.0}
"""How much a detector counts in the mean, where that is not 1. ``move`` only names events that it sees best."""
ALONE = {"low_volatility": 0.6, "joint": 0.6}
"""Those that take no part in the mean, and how much of what they say is the least score."""
BY_FORECAST = {**ALONE, "surprise": 1.0}
"""The same where a network takes covariates: what is usual given these the forecast alone knows."""
FULL = 5.0
"""The root mean square of the -log10 p that is a score of 1."""
DEFAULT_EVENTS_PER_1000_ROWS = 0.6
"""3.4 events in a series as long as NAB's are on average after probation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What turns statistics into scores and events; kept in an artifact's manifest.

    ``prior`` has what each detector has learnt from normal series, by its name; it counts as ``prior_rows`` earlier
    rows. ``tail`` is the share of rows that make up the tail, ``memory`` the number of rows that make up the past.
    ``threshold`` is the score from which a row begins an event at the start of a series, with the budget of
    ``events_per_1000_rows``; ``budgets`` are pairs of another budget and its threshold. ``step``, ``strong``,
    ``hold_rows`` and ``margin`` are those of ``conformal.Control``. ``by_forecast`` says whether a
    value off its forecast counts: where the network takes covariates.
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
        """The detectors that take no part in the mean; see ``combine``."""
        return BY_FORECAST if self.by_forecast else ALONE

    def detectors(self, table: Mapping[str, Detector] = DETECTORS) -> dict[str, Detector]:
        """The detectors of a table as calibrated."""
        ranking = Ranking(prior_rows=self.prior_rows, tail=self.tail, memory=self.memory)
        return {name: one.configured(self.prior.get(name, ()), ranking) for name, one in table.items()}

    def control(self, rate: float | None = None, *, fixed: float | None = None) -> Control:
        """How the threshold follows for a budget of ``rate`` events a 1,000 rows; ``fixed`` is one that stays."""
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
        """The budget that holds where nobody asks for another."""
        return Budget(per_1000_rows=self.events_per_1000_rows)

    def _start(self, rate: float) -> float:
        pairs = [*self.budgets, (self.events_per_1000_rows, self.threshold)]
        rates, levels = np.array(sorted(tuple(pair) for pair in pairs)).T
        return float(np.interp(np.log(max(rate, 1e-9)), np.log(np.maximum(rates, 1e-9)), levels))


def improbability(series: Series, forecast: Forecast, calibration: Calibration) -> dict[str, Floats]:
    """-log10 of each detector's tail probability at each row, (N,); 0 where it cannot tell yet."""
    return improbability_of(ForecastedSeries(series, forecast), calibration)


def improbability_of(one: ForecastedSeries, calibration: Calibration) -> dict[str, Floats]:
    """The same of a series whose first rows may have been scored before."""
    shown = {"surprise": CANDIDATES["surprise"]} if calibration.by_forecast else {}
    table = calibration.detectors(JOINT if one.series.joint else {**DETECTORS, **shown})
    return {name: detector.score(one) for name, detector in table.items()}


def combine(
    channels: Mapping[str, Floats],
    power: float = 2.0,
    weights: Mapping[str, float] = WEIGHTS,
    alone: Mapping[str, float] = ALONE,
) -> Floats:
    """(N,) the score from each detector's -log10 p: their weighted root mean square over 5, 1.6 at the most.

    A user reads 1 for what is above (``published``); beyond it a second event is still told from the first.
    ``low_volatility`` looks for changes that are too small, of which no other can know: it takes no part in the mean,
    and the score is at least 0.6 of its -log10 p over 5. So it is with ``joint``, which scores alone, and with what
    ``alone`` names besides, each with a share of its own. Another ``power`` is for comparison: 1 is the mean, infinity
    the largest; and so are other ``weights``, 1 for what they do not name.
    """
    bounded = {name: np.minimum(values, HIGHEST) for name, values in channels.items()}
    parts = [share * bounded.pop(name) for name, share in alone.items() if name in bounded]
    if bounded:
        counted = {name: weights.get(name, 1.0) for name in bounded if weights.get(name, 1.0)}
        values, shares = np.array([bounded[name] for name in counted]), np.array(list(counted.values()))
        mean = (
            values.max(axis=0) if np.isinf(power) else np.average(values**power, axis=0, weights=shares) ** (1 / power)
        )
        parts.append(mean)
    score: Floats = np.max(parts, axis=0) / FULL
    return score


def published(scores: Floats) -> Floats:
    """(N,) the scores in [0, 1], as a user reads them."""
    return np.minimum(scores, 1.0)


def score(series: Series, calibration: Calibration, forecast: Forecast | None = None) -> Floats:
    """(N,) the score of each row; see ``combine``. But for ``by_forecast`` no detector looks at the forecast."""
    made = without_forecast(len(series)) if forecast is None else forecast
    return combine(improbability(series, made, calibration), alone=calibration.alone)


def without_forecast(rows: int) -> Forecast:
    """A forecast that says nothing, for scores that look at none."""
    return Forecast(levels=(0.5,), quantiles=np.full((rows, 1), np.nan), surprise=np.full((rows, 2), np.nan))
