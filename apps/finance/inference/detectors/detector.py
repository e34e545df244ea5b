"""The detector interface: a detector finds one kind of unusual behaviour in a series, from each row and the rows before
it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from apps.finance.inference.detectors.trailing import change, usual_change
from apps.finance.types import Floats, Forecast, Series

ALIGNMENT = 1024
"""Every detector updates its knowledge of the past at rows whose number is a multiple of some divisor of this."""
MAX_CONTRIBUTION = 8.0
"""The maximum contribution of a single row to a mean: in standard deviations, or in typical changes."""


@dataclass(frozen=True)
class ForecastedSeries:
    """A series with a forecast of each of its rows, made from the rows before it alone.

    Quantities that several detectors need are computed once. The results for rows before ``first`` were computed
    earlier and are in ``carried`` by name; ``series`` is then the end of a longer series, cut at a multiple of
    ``ALIGNMENT`` rows, and ``history`` (H,) a longer end of the same series.
    """

    series: Series
    forecast: Forecast
    first: int = 0
    carried: dict[str, NDArray[Any]] = field(default_factory=dict)
    history: Series | None = None

    def extend_carried(self, name: str, rows: NDArray[Any]) -> NDArray[Any]:
        """(N,) the rows carried under ``name``, followed by ``rows`` (N - first,); carries the result from now on."""
        extended = np.concatenate([self.carried[name], rows]) if self.first else rows
        self.carried[name] = extended
        return extended

    @cached_property
    def absolute_change(self) -> Floats:
        """(N,) the absolute change from the row before; NaN if either is missing."""
        return abs(change(self.series.target, 1))

    @cached_property
    def usual_change(self) -> Floats:
        """(N,) the mean absolute change of up to 2,000 earlier rows; see ``trailing.usual_change``."""
        changes = usual_change(self.series.target, self.absolute_change, self.first)
        return self.extend_carried("usual_change", changes[self.first :])

    @cached_property
    def clipped_change(self) -> Floats:
        """(N,) the absolute change, at most eight typical changes."""
        clipped: Floats = np.minimum(self.absolute_change, MAX_CONTRIBUTION * self.usual_change)
        return clipped


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """How a row's statistic becomes a probability; all detectors of a calibration share these settings.

    ``memory`` is the number of earlier rows that a row is compared with, ``tail`` the share of them that forms the tail
    of their distribution, ``prior_rows`` the number of earlier rows that the detector's ``prior`` counts as.
    """

    prior_rows: float = 1000.0
    tail: float = 0.02
    memory: int = 8000


class Detector(Protocol):
    """Finds one kind of unusual behaviour.

    Causal by contract: the score of a row depends only on that row and earlier ones; a test checks this for every
    detector in the table. A detector is immutable. ``prior`` holds the numbers that ``fit`` learnt, which an artifact's
    manifest stores; it is empty before ``fit``.
    """

    @property
    def channel(self) -> str:
        """The name that a user reads if this detector's score is the highest."""
        ...

    @property
    def echo_rows(self) -> int:
        """The number of rows for which the score may stay high after its cause has gone."""
        ...

    @property
    def max_hold_rows(self) -> int:
        """The maximum number of rows for which a high score keeps an event from ending; 0 means no limit."""
        ...

    @property
    def prior(self) -> Sequence[float]: ...

    def fit(self, history: Sequence[ForecastedSeries]) -> Self:
        """The detector with ``prior`` learnt from series in which nothing is unusual."""
        ...

    def configured(self, prior: Sequence[float], ranking: Ranking) -> Self:
        """The detector with the settings of a calibration."""
        ...

    def score(self, series: ForecastedSeries) -> Floats:
        """(N,) -log10 of the probability that an ordinary row is at least as unusual; 0 where there is too little
        history."""
        ...
