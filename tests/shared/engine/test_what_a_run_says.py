"""What a run says to the person who waits for it: where it goes on, how long it takes, why it ended."""

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


def said(path: Path, capsys: pytest.CaptureFixture[str], recipe: Recipe | None = None, **limits: object) -> list[str]:
    """Trains in ``path`` and returns the lines, without the run's title."""
    fit(recipe or line.recipe(**limits), Run(path, "line", "tiny"), device="cpu")
    return [row.removeprefix("line tiny: ") for row in capsys.readouterr().out.splitlines()]


def test_a_run_that_goes_on_says_from_where(tmp_path, capsys):
    assert not any("going on" in row for row in said(tmp_path, capsys, steps=15))
    assert "going on from step-00000015, of 30 steps" in said(tmp_path, capsys)


def test_a_run_whose_checkpoints_were_deleted_says_that_it_begins_again(tmp_path, capsys):
    assert not any("holds no checkpoint" in line for line in said(tmp_path / "run", capsys, steps=10))
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    told = f"{tmp_path / 'run'} holds no checkpoint: it begins again with its first step"
    assert any(told in line for line in said(tmp_path / "run", capsys, steps=10))


def test_a_logging_step_tells_the_epoch_the_pace_and_what_is_left(tmp_path, capsys):
    rows = said(tmp_path, capsys)
    form = r"step 15/30, epoch 2/3: loss \S+, learning rate \S+, \S+ steps/s, \d+:\d\d:\d\d left"
    assert [row for row in rows if re.fullmatch(form, row)]


def test_the_pace_is_that_of_the_process_that_goes_on(capsys):
    with TrainingLog("title", enabled=True) as log:
        log.begin(total=200, done=100, seconds=1000.0, steps_per_epoch=100)
        log.step(110, 0.5, 0.001, log.pace(110, 1005.0))
    assert "learning rate 0.001, 2 steps/s, 0:00:45 left" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({}, "ended after step 30: its --limits.epochs 3 are done; more goes on from here"),
        ({"steps": 5}, "ended after step 5: its --limits.steps 5 are done; more goes on from here"),
        (
            {"patience": 1, "min_delta": 10.0},
            "ended after step 20: loss has not improved by 10 in 1 evaluation; a larger --limits.patience or a smaller "
            "--limits.min-delta goes on",
        ),
        ({"minutes": 1e-9}, "ended after step 5: its 1e-09 minutes are over; more --limits.minutes goes on"),
    ],
)
def test_a_run_that_has_ended_says_why_and_what_would_go_on(limits, words, tmp_path, capsys):
    assert said(tmp_path, capsys, **limits)[-1] == words
    again = said(tmp_path, capsys, **limits)
    assert again[-1] == words and not any(row.startswith("step") for row in again)


def test_other_settings_are_refused_with_the_two_ways_to_go_on(tmp_path):
    line.train(tmp_path / "run", steps=5)
    other = replace(line.recipe(), optimizer=AdamW(learning_rate=0.5))
    ways = r"\(--recipe .*run/recipe.yaml\), or name a new run, which --init .*run starts from its weights"
    with pytest.raises(InvalidInputError, match=ways):
        line.run(other, tmp_path / "run")


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (3, "and the run has 3 steps: the learning rate never reaches its full height; --schedule.warmup-steps 0 is"),
        (9, "and the run has 9 steps: 33% of them; --schedule.warmup-steps 0 is a tenth"),
        (10, None),
    ],
)
def test_a_warm_up_that_takes_much_of_the_run_is_told(steps, words, tmp_path, capsys):
    rows = [row for row in said(tmp_path, capsys, line.recipe(steps=steps)) if row.startswith("schedule.warmup_steps")]
    assert rows == [] if words is None else rows[0].startswith(f"schedule.warmup_steps is 3 {words}")


class Plain:
    """A network's settings that are no dataclass: a run could not record them."""

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
def test_a_part_of_a_recipe_that_holds_no_settings_is_refused(model, words):
    with pytest.raises(InvalidInputError, match=words):
        Recipe(model=model, data=line.Data(), task=line.Settings())


def test_a_run_may_be_named_by_a_string(tmp_path):
    run = trivium.Run(str(tmp_path / "run"), "line", "line")
    assert fit(line.recipe(steps=2), run, device="cpu", quiet=True).steps == 2
    assert (tmp_path / "run" / "result.json").is_file()
