"""Synthetic series with exactly known anomalies, as a data set. Whatever is trained on it is labelled synthetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.finance.datasets.synth import markets
from apps.finance.datasets.synth.faults import FAULTS
from apps.finance.types import FinanceInput, LabelledSeries
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from apps.finance.datasets.windows import Windows

_VALIDATION, _CALIBRATION, _EVALUATION = 1 << 20, 1 << 21, 1 << 23
"""The first random stream of each use, so that no two uses share a series."""
_MAX_CASES, _MAX_ROWS = 60, 3000
_LENGTH_FACTOR = 3
"""The series on which the threshold is set are this many times as long, because scores change with the series' age."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Synthetic:
    """Synthetic prices, volumes, counts and loads with injected faults.

    ``series`` of ``rows`` rows each for training, and ``validation_series`` further ones for validation. ``stride`` is
    the number of rows between training windows. ``false_events_per_1000_rows`` is the budget at which a calibration
    sets the threshold: 3.4 false events in the 5,700 rows that NAB's files have after probation.
    """

    series: int = 150
    validation_series: int = 30
    rows: int = 3000
    stride: int = 8
    seed: int = 0
    false_events_per_1000_rows: float = 0.6

    def train(self, input: FinanceInput) -> Windows:
        return self._windows(0, self.series, self.stride, input)

    def validation(self, input: FinanceInput) -> Windows:
        return self._windows(_VALIDATION, self.validation_series, 2 * input.horizon, input)

    def fingerprint(self) -> dict[str, Any]:
        return {
            "description": f"{self.series} synthetic series (prices, volumes, counts, loads, sensors) of {self.rows} "
            f"rows with {len(FAULTS)} kinds of anomaly, by apps.finance.datasets.synth with seed {self.seed}",
            "synthetic": True,
            "series": self.series,
            "rows": self.series * self.rows,
            "seed": self.seed,
        }

    def facts(self, input: FinanceInput) -> Mapping[str, Any]:
        """The facts printed before training."""
        return {
            "series": self.series,
            "rows": self.series * self.rows,
            "validation series": self.validation_series,
            "series in both splits": 0,
            "synthetic": True,
        }

    def normal(self) -> list[LabelledSeries]:
        """Series without anomalies that training has not seen, from which detectors learn what is normal."""
        number, rows = min(_MAX_CASES, self.series), min(_MAX_ROWS, self.rows)
        return synthesise(self.seed, _CALIBRATION, number, rows, 0.0)

    def labelled(self) -> list[LabelledSeries]:
        """Series that training has not seen, two thirds of them with anomalies, on which the threshold is set."""
        number, rows = min(_MAX_CASES, self.series), min(_MAX_ROWS, self.rows)
        number_with_anomalies, first = number * 2 // 3, _CALIBRATION + number
        with_anomalies = synthesise(
            self.seed, first, number_with_anomalies, _LENGTH_FACTOR * rows, 2.0 * _LENGTH_FACTOR
        )
        return [
            *with_anomalies,
            *synthesise(
                self.seed, first + number_with_anomalies, number - number_with_anomalies, _LENGTH_FACTOR * rows, 0.0
            ),
        ]

    def cases(self) -> list[LabelledSeries]:
        """Series with anomalies that neither training nor calibration has seen, for evaluation."""
        return synthesise(self.seed, _EVALUATION, self.validation_series, min(_MAX_ROWS, self.rows), 2.0)

    def _windows(self, stream: int, number: int, stride: int, input: FinanceInput) -> Windows:
        from apps.finance.datasets.windows import Windows, covariate_table

        if input.library is not None:
            raise InvalidInputError(
                "synthetic series lack the columns that this network needs; name the table to train it on: "
                "--data table --data.path FILE --data.time T --data.value V"
            )
        tables = []
        for index in range(number):
            generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, stream + index))))
            series = markets.series(generator, length=self.rows).series
            tables.append(covariate_table(series, context=input.context, horizon=input.horizon))
        return Windows(tables, context=input.context, horizon=input.horizon, stride=stride)


def synthesise(seed: int, first: int, number: int, rows: int, anomalies: float) -> list[LabelledSeries]:
    """``number`` synthetic series of the random streams from ``first`` on, with ``anomalies`` anomalies each on
    average."""
    items: list[LabelledSeries] = []
    for stream in range(first, first + number):
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, stream))))
        items.append(markets.series(generator, length=rows, anomalies=anomalies))
    return items
