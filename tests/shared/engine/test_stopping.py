"""Early stopping as a function of the history."""

from __future__ import annotations

import pytest

from shared.engine.early_stopping import EarlyStoppingState, early_stopping_state, scheduled_entries, stop_reason
from shared.errors import InvalidInputError
from shared.recipe import Limits


def history(*losses: float) -> list[dict[str, float]]:
    return [{"step": 10 * (number + 1), "loss": loss} for number, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((), EarlyStoppingState(0, 0)),
        ((3.0, 2.0, 1.0), EarlyStoppingState(30, 0)),
        ((3.0, 2.0, 2.5, 2.4), EarlyStoppingState(20, 2)),
        ((3.0, 2.99, 2.98, 2.85), EarlyStoppingState(40, 0)),  # small steps add up against the last that counted
        ((3.0, 2.99, 2.98), EarlyStoppingState(30, 2)),  # the best is the best, however little better
        ((float("nan"), 3.0, float("nan")), EarlyStoppingState(20, 1)),
        ((float("nan"), float("inf")), EarlyStoppingState(0, 2)),
        ((2.0, 2.0), EarlyStoppingState(10, 1)),
    ],
)
def test_the_best_step_and_the_evaluations_without_improvement(losses, expected):
    assert early_stopping_state(history(*losses), Limits(min_delta=0.1)) == expected


def test_the_monitored_score_may_be_maximised():
    assert early_stopping_state(history(0.1, 0.5, 0.4), Limits(mode="max", min_delta=0.0)) == EarlyStoppingState(20, 1)


def test_why_a_run_ends():
    stale = history(1.0, 2.0, 2.0)
    limits = Limits(patience=2)
    assert stop_reason(stale, limits, out_of_time=False) == "early"
    assert stop_reason(stale[:2], limits, out_of_time=False) is None
    assert stop_reason(stale[:2], limits, out_of_time=True) == "minutes"
    assert stop_reason([], limits, out_of_time=True) is None


def test_an_extra_evaluation_at_a_stop_is_not_a_scheduled_one():
    entries = history(1.0, 2.0, 2.0)
    assert scheduled_entries(entries, 10) == entries
    assert scheduled_entries(entries, 20) == entries[:2]
    assert scheduled_entries([], 20) == []


def test_a_monitor_that_the_task_does_not_score_is_refused():
    with pytest.raises(InvalidInputError, match=r"limits\.monitor is 'map', but the task's scores are loss$"):
        early_stopping_state(history(1.0), Limits(monitor="map"))
