"""The adaptive threshold: as many events as were asked for on any series, and every strong row is an event."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.finance.inference.conformal import MERGE_ROWS, REPORTED, Budget, Control, report
from apps.finance.inference.scoring import Calibration
from apps.finance.types import DAY_NS, HOUR_NS, MINUTE_NS, Series

scores = st.lists(st.floats(0, 1), min_size=1, max_size=300).map(np.asarray)


def series(times: np.ndarray) -> Series:
    values = {"v": np.zeros(len(times))}
    return Series(name="s", times_ns=times.astype(np.int64), values=values, column="v", interval_ns=HOUR_NS)


@settings(max_examples=100)
@given(scores, st.floats(0.15, 0.95), st.sampled_from([0.0, 0.02, 0.1]), st.integers(0, 299))
def test_reports_do_not_depend_on_later_rows(values, start, step, cut):
    control, due = Control(start=start, step=step), 0.02 * np.arange(len(values))
    whole, part = report(values, due, control), report(values[:cut], due[:cut], control)
    np.testing.assert_array_equal(whole.scores[:cut], part.scores)
    np.testing.assert_allclose(whole.thresholds[:cut], part.thresholds)
    np.testing.assert_array_equal(whole.renewed[:cut], part.renewed)


@settings(max_examples=100)
@given(scores, st.floats(0.15, 0.95), st.sampled_from([0.0, 0.05]))
def test_the_first_row_above_the_threshold_is_reported_and_none_below(values, start, step):
    found = report(values, 0.01 * np.arange(len(values)), Control(start=start, step=step))
    reported_rows = np.flatnonzero(found.scores)
    assert (values[reported_rows] >= found.thresholds[reported_rows] - 1e-9).all()
    above = np.flatnonzero(values >= found.thresholds)
    assert len(reported_rows) == len(above) == 0 or reported_rows[0] == above[0]


@pytest.mark.parametrize("spread", [0.02, 0.04, 0.06])
def test_series_of_any_spread_meet_the_budget_through_a_shift(spread):
    generator = np.random.default_rng(7)
    values = np.clip(generator.exponential(spread, 60_000), 0, 1)
    values[30_000:] = np.clip(1.5 * values[30_000:], 0, 1)
    due = Budget(per_1000_rows=1.0).due(60_000)
    control = Control(start=0.3, step=0.04, strong=1.0, least=0.0, margin=0.02, hold_rows=5)
    found = report(values, due, control)
    for half in (slice(0, 30_000), slice(30_000, None)):
        assert (found.scores[half] > REPORTED).sum() == pytest.approx(30, rel=0.4)
    assert (found.scores > REPORTED).sum() == pytest.approx(60, rel=0.2)


def test_a_quiet_series_stays_quiet_however_long_it_waits():
    values = np.full(100_000, 0.1)
    found = report(values, Budget(per_1000_rows=5.0).due(100_000), Control(start=0.3, step=0.02))
    assert not found.scores.any() and found.thresholds[-1] == pytest.approx(0.18)


def test_a_larger_budget_never_gives_fewer_events():
    """Ordinary rows do not merge into one endless event."""
    generator = np.random.default_rng(5)
    values = np.clip(generator.normal(0.13, 0.03, 30_000) + generator.exponential(0.02, 30_000), 0, 1)

    def obtained(rate: float) -> int:
        rows = np.flatnonzero(
            report(values, Budget(per_1000_rows=rate).due(30_000), Control(start=0.3, step=0.02)).scores
        )
        return int((np.diff(rows) > MERGE_ROWS).sum()) + 1

    assert obtained(1.0) == pytest.approx(30, rel=0.1) and obtained(5.0) == pytest.approx(150, rel=0.1)
    assert obtained(10.0) == pytest.approx(300, rel=0.1) and obtained(20.0) > 80


def test_an_event_raises_the_threshold_and_the_rows_without_one_lower_it():
    values = np.zeros(2000)
    values[500] = 0.35
    found = report(values, Budget(per_1000_rows=1.0).due(2000), Control(start=0.3, step=0.1, strong=0.2))
    assert found.thresholds[[0, 500, 501]] == pytest.approx([0.3, 0.25, 0.35], abs=2e-4)
    assert found.thresholds[1500] == pytest.approx(0.25, abs=1e-3)
    values[500] = 0.9  # a true anomaly does not raise the threshold
    strong = report(values, Budget(per_1000_rows=1.0).due(2000), Control(start=0.3, step=0.1, strong=0.2))
    assert strong.thresholds[501] == pytest.approx(0.25, abs=2e-4)


def test_a_shift_in_the_wake_of_a_stronger_one_is_an_event():
    values = np.full(1000, 0.1)
    values[300:305], values[400:405] = 0.9, 0.5
    found = report(values, np.zeros(1000), Control(start=0.3))
    assert np.flatnonzero(found.scores).tolist() == [300, 400]


@pytest.mark.parametrize("settled", [0.4, 0.5, 0.75])
@pytest.mark.parametrize("after", [60, 100, 160])
def test_a_shift_while_the_score_of_the_first_stays_high_is_an_event(settled, after):
    """If a series stays at its new level, the score settles below its peak but above the threshold."""
    values = np.full(1000, 0.1)
    values[300:500] = settled + 0.02 * np.random.default_rng(3).uniform(size=200)
    values[300], values[300 + after] = 1.0, np.hypot(settled, 0.5)
    found = report(values, np.zeros(1000), Control(start=0.35))
    assert np.flatnonzero(found.scores).tolist() == [300, 300 + after]
    assert np.flatnonzero(found.renewed).tolist() == [300 + after]


@pytest.mark.parametrize("after", [13, 30, 40])
def test_a_bad_print_soon_after_another_is_an_event(after):
    """The held score of the first print does not suppress a report once the score is ordinary again."""
    values = np.full(1000, 0.1)
    values[300] = values[300 + after] = 0.6
    found = report(values, np.zeros(1000), Control(start=0.35))
    assert np.flatnonzero(found.scores).tolist() == [300, 300 + after]
    assert np.flatnonzero(found.renewed).tolist() == [300 + after]


def test_a_disturbance_whose_score_has_not_settled_is_one_event():
    values = np.full(1000, 0.1)
    values[300:340] = np.where(np.arange(40) % 10 == 0, 0.6, 0.28)
    found = report(values, np.zeros(1000), Control(start=0.35))
    assert np.flatnonzero(found.scores).tolist() == [300]


def test_a_score_that_rises_little_by_little_is_one_event():
    values = np.clip(np.linspace(-0.2, 0.9, 600), 0, 1) + 0.02 * np.random.default_rng(4).uniform(size=600)
    assert not report(values, np.zeros(600), Control(start=0.35)).renewed.any()


def test_a_daily_budget_equals_one_by_rows_on_regular_rows_and_pauses_in_gaps():
    hourly = series(np.arange(500) * HOUR_NS)
    assert Budget(per_day=0.24).rate(hourly) == pytest.approx(10.0)
    due = Budget(per_day=0.24).expected(hourly)
    np.testing.assert_allclose(due, Budget(per_1000_rows=10.0).expected(hourly))
    gap = series(np.concatenate([np.arange(100), 10**6 + np.arange(100)]) * MINUTE_NS)
    due = Budget(per_day=2.0).expected(gap)
    assert due[100] - due[99] == pytest.approx(2.0) and gap.times_ns[100] - gap.times_ns[99] > 600 * DAY_NS


def test_a_stricter_budget_begins_with_a_higher_threshold():
    calibration = Calibration(threshold=0.3, events_per_1000_rows=0.6, budgets=[(0.1, 0.45), (2.0, 0.2)])
    assert calibration.control().start == pytest.approx(0.3)
    starts = [calibration.control(rate).start for rate in (0.01, 0.1, 0.3, 0.6, 1.0, 2.0, 9.0)]
    assert starts == sorted(starts, reverse=True) and starts[0] == starts[1] == 0.45 and starts[-1] == 0.2
    assert calibration.control(fixed=0.7).start == 0.7 and calibration.control(fixed=0.7).step == 0
