"""Where a run stands, from its history alone."""

from __future__ import annotations

import pytest

from shared.engine.recipe import Limits
from shared.engine.stopping import Standing, at_epoch_ends, ended, standing
from shared.refusal import Refusal


def history(*losses: float) -> list[dict[str, float]]:
    return [{"step": 10 * (number + 1), "loss": loss} for number, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((), Standing(0, 0)),
        ((3.0, 2.0, 1.0), Standing(30, 0)),
        ((3.0, 2.0, 2.5, 2.4), Standing(20, 2)),
        ((3.0, 2.99, 2.98, 2.85), Standing(40, 0)),  # small steps add up against the last that counted
        ((3.0, 2.99, 2.98), Standing(30, 2)),  # the best is the best, however little better
        ((float("nan"), 3.0, float("nan")), Standing(20, 1)),
        ((float("nan"), float("inf")), Standing(0, 2)),
        ((2.0, 2.0), Standing(10, 1)),
    ],
)
def test_the_best_and_how_long_ago_it_was_clearly_so(losses, expected):
    assert standing(history(*losses), Limits(min_delta=0.1)) == expected


def test_a_score_may_be_better_the_higher_it_is():
    assert standing(history(0.1, 0.5, 0.4), Limits(mode="max", min_delta=0.0)) == Standing(20, 1)


def test_why_a_run_ends():
    stale = history(1.0, 2.0, 2.0)
    limits = Limits(patience=2)
    assert ended(stale, limits, late=False) == "early"
    assert ended(stale[:2], limits, late=False) is None
    assert ended(stale[:2], limits, late=True) == "minutes"
    assert ended([], limits, late=True) is None
    assert at_epoch_ends(stale, 20) == [stale[1]]


def test_a_monitor_that_the_task_does_not_score_is_refused():
    with pytest.raises(Refusal, match=r"limits\.monitor is 'map', and the task scores loss, step"):
        standing(history(1.0), Limits(monitor="map"))
