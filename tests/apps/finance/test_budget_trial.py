"""The ratio of events to the number asked for: what is counted, and on which series."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from apps.finance.datasets.synth.ordinary import ORDINARY, ordinary
from apps.finance.inference.budget_trial import BudgetOutcome, budget_tables, count_events, run_budget_trial
from apps.finance.inference.conformal import Budget
from apps.finance.inference.scoring import Calibration
from apps.finance.types import DAY_NS, HOUR_NS


def generator() -> np.random.Generator:
    return np.random.Generator(np.random.Philox(5))


@pytest.mark.parametrize(("events", "within"), [(7, False), (8, True), (12, True), (13, False)])
def test_within_20_percent_includes_more_and_fewer_events(events, within):
    assert BudgetOutcome("noise", 1, 1000, 10.0, events).within is within


@pytest.mark.parametrize("kind", ORDINARY)
def test_every_kind_is_reproducible_with_ordered_rows(kind):
    first, second = ordinary(generator(), kind, length=1200), ordinary(generator(), kind, length=1200)
    assert len(first.series) == 1200 and np.isfinite(first.series.target).all()
    assert (np.diff(first.series.times_ns) >= first.series.interval_ns).all()
    np.testing.assert_array_equal(first.series.target, second.series.target)


def test_minute_bars_are_of_weekdays_and_opening_hours():
    times = ordinary(generator(), "minute bars in sessions", length=4000).series.times_ns
    assert set((times // DAY_NS + 3) % 7) <= {0, 1, 2, 3, 4}
    hours = times % DAY_NS / HOUR_NS
    assert hours.min() == 9.5 and hours.max() < 16


def test_a_single_change_is_labelled_at_its_rows():
    generated = ordinary(generator(), "one shift by 20 deviations", length=1000)
    (window,) = generated.windows
    row = int(np.searchsorted(generated.series.times_ns, window.start_ns))
    assert abs(np.diff(generated.series.target)[row - 1]) > 15
    assert not ordinary(generator(), "levels that change", length=1000).windows


def test_only_events_that_begin_outside_windows_count():
    shifted = ordinary(generator(), "one shift by 20 deviations", length=3000)
    budget = Budget(per_1000_rows=0.2)
    (labelled,) = count_events(shifted, Calibration(), budget)
    (unlabelled,) = count_events(replace(shifted, windows=()), Calibration(), budget)
    assert unlabelled == labelled + 1


def test_both_budgets_follow_from_the_rows_and_days():
    by_rows, by_day = run_budget_trial(Calibration(), "white noise", series=2, rows=1000)
    assert (by_rows.series, by_rows.rows) == (2, 2000)
    assert by_rows.requested == pytest.approx(2 * 999 * 0.6 / 1000)
    assert by_day.requested == pytest.approx(2 * 999 * 0.5 * 5 / (24 * 60))


def test_the_tables_have_a_row_for_each_kind_and_say_whether_it_is_within_20_percent(monkeypatch):
    def counted(calibration: Calibration, kind: str) -> tuple[BudgetOutcome, BudgetOutcome]:
        return BudgetOutcome(kind, 2, 2000, 10.0, 12), BudgetOutcome(kind, 2, 2000, 20.0, 30)

    monkeypatch.setattr("apps.finance.inference.budget_trial.run_budget_trial", counted)
    by_rows, by_day = budget_tables(Calibration())
    assert [row[0] for row in by_rows.rows] == list(ORDINARY)
    assert by_rows.rows[0] == ("white noise", "2", "2,000", "10", "12", "1.20", "yes")
    assert by_day.rows[0][3:] == ("20", "30", "1.50", "no")
