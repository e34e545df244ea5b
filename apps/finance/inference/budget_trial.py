"""The number of events that a user gets over the number asked for, by kind of series in which nothing is wrong."""

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
_TOLERANCE = 0.2
_PER_1000_ROWS, _PER_DAY, _PER_DAY_FOR_DAILY_CLOSES = 0.6, 0.5, 0.002


@dataclass(frozen=True, slots=True)
class BudgetOutcome:
    """The events asked for and received in ``series`` series of one kind, ``rows`` rows in all."""

    kind: str
    series: int
    rows: int
    requested: float
    received: int

    @property
    def ratio(self) -> float:
        return self.received / self.requested

    @property
    def within(self) -> bool:
        """Whether the number of events is within 20 % of the number asked for."""
        return abs(self.received - self.requested) <= _TOLERANCE * self.requested


def budget_tables(calibration: Calibration) -> tuple[Table, Table]:
    """Events asked for and received by kind, with a budget by 1,000 rows (the model's own) and with one by the day."""
    by_rows, by_day = zip(*(run_budget_trial(calibration, kind) for kind in ORDINARY), strict=True)
    columns = ("kind", "series", "rows", "asked", "given", "ratio", "within 20 %")
    notes = (
        "Synthetic series in which nothing is wrong, which neither training nor calibration has seen. Every event that "
        "a user gets counts, from the first row on; in the two kinds that change once, events that begin within 100 "
        "rows after the change do not count.",
    )
    return (
        Table(
            title=f"Events given over those asked for: {_PER_1000_ROWS:g} in 1,000 rows",
            columns=columns,
            rows=[_row(outcome) for outcome in by_rows],
        ),
        Table(
            title=f"Events given over those asked for: {_PER_DAY:g} a day, for daily closes "
            f"{_PER_DAY_FOR_DAILY_CLOSES:g}",
            columns=columns,
            rows=[_row(outcome) for outcome in by_day],
            notes=notes,
        ),
    )


def run_budget_trial(
    calibration: Calibration, kind: str, *, series: int = _SERIES, rows: int = _ROWS
) -> tuple[BudgetOutcome, BudgetOutcome]:
    """The outcome for ``series`` series of a kind, with a budget by 1,000 rows and with one by the day."""
    per_day = _PER_DAY_FOR_DAILY_CLOSES if kind == "daily closes" else _PER_DAY
    budgets = Budget(per_1000_rows=_PER_1000_ROWS), Budget(per_day=per_day)
    requested, received = np.zeros(2), np.zeros(2, np.int64)
    for item in _items(kind, series, rows):
        requested += [budget.expected(item.series)[-1] for budget in budgets]
        received += count_events(item, calibration, *budgets)
    first, second = (
        BudgetOutcome(kind, series, series * rows, float(requested[k]), int(received[k])) for k in range(2)
    )
    return first, second


def count_events(item: LabelledSeries, calibration: Calibration, *budgets: Budget) -> list[int]:
    """The number of events that a user gets with each budget, except those that begin in a labelled window."""
    series: Series = item.series
    forecast = without_forecast(len(series))
    channels = improbability(series, forecast, calibration)
    scores, time_gaps = combine(channels), gaps(series)
    numbers = []
    for budget in budgets:
        reported = report(scores, budget.expected(series), calibration.control(budget.rate(series)))
        events = anomalies(series, forecast, scores, reported, channels, gaps=time_gaps)
        is_labelled = [
            any(window.start_ns <= event.start_ns <= window.end_ns for window in item.windows) for event in events
        ]
        numbers.append(len(events) - sum(is_labelled))
    return numbers


def _items(kind: str, series: int, rows: int) -> Iterator[LabelledSeries]:
    """``series`` series of a kind with ``rows`` rows each, from random streams of their own."""
    first = _STREAM + 100 * list(ORDINARY).index(kind)
    for stream in range(first, first + series):
        yield ordinary(np.random.Generator(np.random.Philox(np.random.SeedSequence((0, stream)))), kind, length=rows)


def _row(outcome: BudgetOutcome) -> tuple[str, ...]:
    within_text = "yes" if outcome.within else "no"
    return (
        outcome.kind,
        f"{outcome.series}",
        f"{outcome.rows:,}",
        f"{outcome.requested:.0f}",
        f"{outcome.received}",
        f"{outcome.ratio:.2f}",
        within_text,
    )
