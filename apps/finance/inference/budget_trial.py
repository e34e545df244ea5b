"""Events that a user gets over those asked for, by kind of series in which nothing is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from apps.finance.datasets.synth.ordinary import ORDINARY, ordinary
from apps.finance.inference.conformal import Budget, report
from apps.finance.inference.events import anomalies
from apps.finance.inference.gaps import gaps
from apps.finance.inference.scoring import Calibration, combine, improbability, without_forecast
from apps.finance.types import LabelledSeries, Series
from shared.app import Table

_STREAM = 1 << 27
_SERIES, _ROWS = 6, 10_000
_WITHIN = 0.2
_BY_ROWS, _BY_DAY, _DAILY_ROWS_BY_DAY = 0.6, 0.5, 0.002


@dataclass(frozen=True, slots=True)
class Given:
    """Events asked for and given in ``series`` series of one kind, ``rows`` rows in all."""

    kind: str
    series: int
    rows: int
    asked: float
    given: int

    @property
    def ratio(self) -> float:
        return self.given / self.asked

    @property
    def within(self) -> bool:
        """Whether there are as many events as were asked for, give or take 20 %."""
        return abs(self.given - self.asked) <= _WITHIN * self.asked


def budget_tables(calibration: Calibration) -> tuple[Table, Table]:
    """Asked and given by kind, with a budget by 1,000 rows (the model's own) and with one by the day."""
    by_rows, by_day = zip(*(trial(calibration, kind) for kind in ORDINARY), strict=True)
    columns = ("kind", "series", "rows", "asked", "given", "ratio", "within 20 %")
    notes = (
        "Synthetic series in which nothing is wrong, which neither training nor calibration has seen. All that a user "
        "is told counts, from the first row on; of the two kinds that change once, not what begins in the 100 rows "
        "from the change on.",
    )
    return (
        Table(
            title=f"Events given over those asked for: {_BY_ROWS:g} in 1,000 rows",
            columns=columns,
            rows=[_row(one) for one in by_rows],
        ),
        Table(
            title=f"Events given over those asked for: {_BY_DAY:g} a day, of daily closes {_DAILY_ROWS_BY_DAY:g}",
            columns=columns,
            rows=[_row(one) for one in by_day],
            notes=notes,
        ),
    )


def trial(calibration: Calibration, kind: str, *, series: int = _SERIES, rows: int = _ROWS) -> tuple[Given, Given]:
    """What ``series`` series of a kind get with a budget by 1,000 rows, and with one by the day."""
    per_day = _DAILY_ROWS_BY_DAY if kind == "daily closes" else _BY_DAY
    budgets = Budget(per_1000_rows=_BY_ROWS), Budget(per_day=per_day)
    asked, given = np.zeros(2), np.zeros(2, np.int64)
    for item in _items(kind, series, rows):
        asked += [budget.expected(item.series)[-1] for budget in budgets]
        given += events_given(item, calibration, *budgets)
    first, second = (Given(kind, series, series * rows, float(asked[k]), int(given[k])) for k in range(2))
    return first, second


def events_given(item: LabelledSeries, calibration: Calibration, *budgets: Budget) -> list[int]:
    """How many events a user gets with each budget, but for those that begin in a window."""
    series: Series = item.series
    forecast = without_forecast(len(series))
    channels = improbability(series, forecast, calibration)
    scores, pauses = combine(channels), gaps(series)
    numbers = []
    for budget in budgets:
        reported = report(scores, budget.expected(series), calibration.control(budget.rate(series)))
        found = anomalies(series, forecast, scores, reported, channels, gaps=pauses)
        right = [any(window.start_ns <= one.start_ns <= window.end_ns for window in item.windows) for one in found]
        numbers.append(len(found) - sum(right))
    return numbers


def _items(kind: str, series: int, rows: int) -> Iterator[LabelledSeries]:
    first = _STREAM + 100 * list(ORDINARY).index(kind)
    for stream in range(first, first + series):
        yield ordinary(np.random.Generator(np.random.Philox(np.random.SeedSequence((0, stream)))), kind, length=rows)


def _row(one: Given) -> tuple[str, ...]:
    within = "yes" if one.within else "no"
    return one.kind, f"{one.series}", f"{one.rows:,}", f"{one.asked:.0f}", f"{one.given}", f"{one.ratio:.2f}", within
