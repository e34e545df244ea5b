"""Validation within epochs at a given interval of steps."""

from __future__ import annotations

import pytest

from shared.engine.checkpoint import Checkpoints
from shared.errors import InvalidInputError
from shared.recipe import Limits
from shared.recipe_file import digest
from tests.shared.engine import line
from tests.shared.engine.line import same_weights, train, weights
from tests.shared.engine.test_loop import falling_apart


def steps(result):
    return [entry["step"] for entry in result.history]


def test_a_run_validates_at_the_given_interval_and_at_the_end(tmp_path):
    result = train(tmp_path / "often", validate_every=4)
    assert steps(result) == [4, 8, 12, 16, 20, 24, 28, 30]
    assert steps(train(tmp_path / "seldom", validate_every=20)) == [20, 30]
    epochs = train(tmp_path / "epochs")
    assert steps(epochs) == [10, 20, 30]
    assert same_weights(weights(tmp_path / "often", 30), weights(tmp_path / "epochs", 30))


def test_early_stopping_and_the_best_checkpoint_use_the_evaluations_within_epochs(tmp_path):
    losses = {4: 3.0, 8: 1.0, 12: 2.0, 16: 2.0, 20: 0.5}
    result = train(tmp_path, falling_apart(losses), validate_every=4, patience=2, keep=1, checkpoint_every=100)
    assert (result.reason, result.steps, result.best_step) == ("early", 16, 8)
    assert Checkpoints(tmp_path / "checkpoints", recipe_digest="").best().name == "step-00000008"


@pytest.mark.parametrize("stop", [6, 10, 12], ids=["between two", "at the end of an epoch", "at an evaluation"])
def test_a_run_stopped_and_resumed_makes_the_same_evaluations(tmp_path, stop):
    whole = train(tmp_path / "whole", validate_every=4)
    stopped = train(tmp_path / "parts", validate_every=4, steps=stop)
    assert steps(stopped)[-1] == stop
    resumed = train(tmp_path / "parts", validate_every=4)
    assert resumed.history == whole.history and resumed.best_step == whole.best_step
    assert same_weights(weights(tmp_path / "whole", 30), weights(tmp_path / "parts", 30))


def test_a_run_may_resume_with_a_different_interval_and_keeps_its_history(tmp_path):
    losses = {10: 1.0, 17: 0.1, 21: 2.0, 28: 2.0, 30: 2.0}
    task = falling_apart(losses)
    train(tmp_path, task, keep=1, checkpoint_every=100, steps=17)
    result = train(tmp_path, task, keep=1, checkpoint_every=100, validate_every=7)
    assert steps(result) == [10, 21, 28, 30]
    assert result.best_step == 10
    assert Checkpoints(tmp_path / "checkpoints", recipe_digest="").best().name == "step-00000010"
    assert digest(line.recipe(validate_every=7)) == digest(line.recipe())


def test_an_interval_of_zero_steps_is_refused():
    with pytest.raises(InvalidInputError, match=r"limits\.validate_every is 0; it must be at least 1"):
        Limits(validate_every=0)
