"""What a detector is: it finds one kind of unusual behaviour in a series, from each row and the rows before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from apps.finance.inference.detectors.trailing import change, usual_change
from apps.finance.types import Floats, Forecast, Series

ALIGNED = 1024
"""What any detector knows of the past is renewed where the number of the row is a multiple of a divisor of this."""
HIGHEST = 8.0
"""No single row counts for more than this in a mean: in standard deviations, or in usual changes."""


@dataclass(frozen=True)
class ForecastedSeries:
    """A series with the forecast of each of its rows, which is made from the rows before it alone.

    What several detectors need of it is computed once. Rows before ``first`` have been computed already, as far as
    ``carried`` has them by name: then ``series`` is the end of a longer one, cut off in front at a multiple of
    ``ALIGNED`` rows, and ``history`` (H,) a longer end of it.
    """

    series: Series
    forecast: Forecast
    first: int = 0
    carried: dict[str, NDArray[Any]] = field(default_factory=dict)
    history: Series | None = None

    def extended(self, name: str, rows: NDArray[Any]) -> NDArray[Any]:
        """(N,) what is carried under ``name``, then ``rows`` (N - first,); carried from now on."""
        whole = np.concatenate([self.carried[name], rows]) if self.first else rows
        self.carried[name] = whole
        return whole

    @cached_property
    def absolute_change(self) -> Floats:
        """(N,) the absolute change from the row before; NaN where either is missing."""
        return abs(change(self.series.target, 1))

    @cached_property
    def usual_change(self) -> Floats:
        """(N,) the mean absolute change in up to 2,000 earlier rows; see ``trailing.usual_change``."""
        usual = usual_change(self.series.target, self.absolute_change, self.first)
        return self.extended("usual_change", usual[self.first :])

    @cached_property
    def clipped_change(self) -> Floats:
        """(N,) the absolute change, eight usual changes at the most."""
        clipped: Floats = np.minimum(self.absolute_change, HIGHEST * self.usual_change)
        return clipped


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """How a row's statistic becomes a probability; one setting for all detectors of a calibration.

    ``memory`` is the number of earlier rows that a row is compared with, ``tail`` the share of them that makes up the
    tail of their distribution, ``prior_rows`` how many earlier rows the detector's ``prior`` counts for.
    """

    prior_rows: float = 1000.0
    tail: float = 0.02
    memory: int = 8000


class Detector(Protocol):
    """Finds one kind of unusual behaviour.

    Causal by contract: the score of a row depends on that row and earlier ones alone. A test holds every detector in
    the table to it. A detector is immutable; ``prior`` is what ``fit`` learnt, numbers that an artifact's manifest
    keeps, and empty before.
    """

    @property
    def word(self) -> str:
        """What a user reads where this detector's score is the highest."""
        ...

    @property
    def echo(self) -> int:
        """For how many rows the score may stay high after its cause has gone."""
        ...

    @property
    def holds(self) -> int:
        """For how many rows at most a high score keeps an event from ending; 0 for as long as it is high."""
        ...

    @property
    def prior(self) -> Sequence[float]: ...

    def fit(self, history: Sequence[ForecastedSeries]) -> Self:
        """The detector with ``prior`` learnt from series in which nothing is unusual."""
        ...

    def configured(self, prior: Sequence[float], ranking: Ranking) -> Self:
        """The detector as a calibration has it."""
        ...

    def score(self, series: ForecastedSeries) -> Floats:
        """(N,) -log10 of the probability that an ordinary row is at least as unusual; 0 where it cannot tell yet."""
        ...
