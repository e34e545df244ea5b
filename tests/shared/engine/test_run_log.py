"""The console log of a run: where it resumes, how long it takes, why it ended."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import trivium
from shared.engine.loop import fit
from shared.engine.run import Run
from shared.engine.training_log import TrainingLog
from shared.errors import InvalidInputError
from shared.optimizers import AdamW
from shared.recipe import Recipe
from tests.shared.engine import line


def log_lines(
    path: Path, capsys: pytest.CaptureFixture[str], recipe: Recipe | None = None, **limits: object
) -> list[str]:
    """Trains in ``path`` and returns the log lines without the run's title."""
    fit(recipe or line.recipe(**limits), Run(path, "line", "tiny"), device="cpu")
    return [row.removeprefix("line tiny: ") for row in capsys.readouterr().out.splitlines()]


def test_a_resumed_run_logs_its_checkpoint(tmp_path, capsys):
    assert not any("resumed from" in row for row in log_lines(tmp_path, capsys, steps=15))
    assert "resumed from step-00000015, of 30 steps" in log_lines(tmp_path, capsys)


def test_a_run_whose_checkpoints_were_deleted_logs_that_it_starts_again(tmp_path, capsys):
    assert not any("has no checkpoint" in line for line in log_lines(tmp_path / "run", capsys, steps=10))
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    expected = f"{tmp_path / 'run'} has no checkpoint: it starts again at its first step"
    assert any(expected in line for line in log_lines(tmp_path / "run", capsys, steps=10))


def test_a_logging_step_shows_epoch_speed_and_remaining_time(tmp_path, capsys):
    rows = log_lines(tmp_path, capsys)
    form = r"step 15/30, epoch 2/3: loss \S+, learning rate \S+, \S+ steps/s, \d+:\d\d:\d\d left"
    assert [row for row in rows if re.fullmatch(form, row)]


def test_the_speed_is_that_of_the_resumed_process(capsys):
    with TrainingLog("title", enabled=True) as log:
        log.start(total=200, done=100, seconds=1000.0, steps_per_epoch=100)
        log.step(110, 0.5, 0.001, log.steps_per_second(110, 1005.0))
    assert "learning rate 0.001, 2 steps/s, 0:00:45 left" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({}, "ended after step 30: --limits.epochs 3 is reached; to continue, raise it"),
        ({"steps": 5}, "ended after step 5: --limits.steps 5 is reached; to continue, raise it"),
        (
            {"patience": 1, "min_delta": 10.0},
            "ended after step 20: loss has not improved by 10 in 1 evaluation; to continue, raise --limits.patience or "
            "lower --limits.min-delta",
        ),
        (
            {"minutes": 1e-9},
            "ended after step 5: the time limit of 1e-09 minutes is over; to continue, raise --limits.minutes",
        ),
    ],
)
def test_an_ended_run_logs_the_reason_and_how_to_continue(limits, words, tmp_path, capsys):
    assert log_lines(tmp_path, capsys, **limits)[-1] == words
    resumed_lines = log_lines(tmp_path, capsys, **limits)
    assert resumed_lines[-1] == words and not any(row.startswith("step") for row in resumed_lines)


def test_different_settings_are_refused_with_the_two_remedies(tmp_path):
    line.train(tmp_path / "run", steps=5)
    other_recipe = replace(line.recipe(), optimizer=AdamW(learning_rate=0.5))
    remedies = r"\(--recipe .*run/recipe.yaml\), or name a new run, which --init .*run starts from its weights"
    with pytest.raises(InvalidInputError, match=remedies):
        line.run(other_recipe, tmp_path / "run")


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (3, "and the run has 3 steps: the learning rate never reaches its maximum; --schedule.warmup-steps 0 would"),
        (9, "and the run has 9 steps: it takes 33% of them; --schedule.warmup-steps 0 would be a tenth"),
        (10, None),
    ],
)
def test_a_long_warm_up_is_logged(steps, words, tmp_path, capsys):
    rows = [
        row for row in log_lines(tmp_path, capsys, line.recipe(steps=steps)) if row.startswith("schedule.warmup_steps")
    ]
    assert rows == [] if words is None else rows[0].startswith(f"schedule.warmup_steps is 3 {words}")


class Plain:
    """A model config that is not a dataclass, so a run could not record it."""

    def build(self, input: object) -> object:
        return line.Network().build()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (line.Network().build(), "model is a Sequential; it must be an instance of a dataclass with build"),
        (line.Network, "model is the class Network"),
        (Plain(), "model is a Plain; .* the settings that the run records"),
    ],
)
def test_a_recipe_component_that_is_no_dataclass_is_refused(model, words):
    with pytest.raises(InvalidInputError, match=words):
        Recipe(model=model, data=line.Data(), task=line.Settings())


def test_the_path_of_a_run_may_be_a_string(tmp_path):
    run = trivium.Run(str(tmp_path / "run"), "line", "line")
    assert fit(line.recipe(steps=2), run, device="cpu", quiet=True).steps == 2
    assert (tmp_path / "run" / "result.json").is_file()
