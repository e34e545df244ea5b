from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from shared.engine.checkpoint import Checkpoints
from shared.engine.run import Run
from shared.errors import InvalidInputError
from shared.observe.events import Events
from shared.optimizers import AdamW, CosineRestarts, Steps
from shared.recipe import Limits
from shared.recipe_file import digest, from_mapping, read_recipe_file, to_mapping
from tests.shared.engine import line
from tests.shared.engine.line import ROOT, same_weights, train, weights


def test_a_run_learns_and_writes_all_its_files(tmp_path):
    result = train(tmp_path / "run")
    assert result.steps == 30 and result.reason == "epochs"
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert result.scores["samples"] == 13
    assert read_recipe_file(tmp_path / "run" / "recipe.yaml")["recipe"]["limits"]["batch"] == 4
    events = [json.loads(row) for row in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events if e["event"] != "train"] == ["begin", *["validation"] * 3, "end"]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["best_step"] == result.best_step
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))


@pytest.mark.parametrize("stop", [7, 10, 15], ids=["within an epoch", "at its end", "at a checkpoint"])
def test_a_run_stopped_and_resumed_is_the_same_run(tmp_path, stop):
    train(tmp_path / "whole")
    train(tmp_path / "parts", steps=stop)
    assert not (tmp_path / "parts" / "checkpoints" / "step-00000030").exists()
    resumed = train(tmp_path / "parts")
    assert same_weights(weights(tmp_path / "whole", 30), weights(tmp_path / "parts", 30))
    whole = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert resumed.history == whole["history"]
    assert (resumed.best_step, resumed.scores) == (whole["best_step"], whole["scores"])


def test_a_killed_run_resumes_from_its_last_checkpoint(tmp_path):
    train(tmp_path / "whole")
    code = (
        "import os, sys; from pathlib import Path\n"
        "from tests.shared.engine import line\n"
        "class Deadly(line.Regression):\n"
        "    calls = 0\n"
        "    def loss(self, model, batch):\n"
        "        Deadly.calls += 1\n"
        "        if Deadly.calls == 14: os._exit(9)\n"
        "        return super().loss(model, batch)\n"
        "line.train(Path(sys.argv[1]), Deadly)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "killed")], env=environment)
    assert killed.returncode == 9
    train(tmp_path / "killed")
    assert same_weights(weights(tmp_path / "whole", 30), weights(tmp_path / "killed", 30))


def test_a_damaged_checkpoint_is_skipped(tmp_path):
    train(tmp_path / "whole")
    train(tmp_path / "torn", steps=15)
    newest = tmp_path / "torn" / "checkpoints" / "step-00000015" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    checkpoints = Checkpoints(tmp_path / "torn" / "checkpoints", recipe_digest="")
    assert checkpoints.latest().name == "step-00000010"
    train(tmp_path / "torn")
    assert same_weights(weights(tmp_path / "whole", 30), weights(tmp_path / "torn", 30))


def test_only_the_last_checkpoints_and_the_best_are_kept(tmp_path):
    result = train(tmp_path / "run", keep=2)
    kept_checkpoints = {p.name for p in (tmp_path / "run" / "checkpoints").glob("step-*")}
    assert {"step-00000025", "step-00000030", f"step-{result.best_step:08d}"} == kept_checkpoints


def test_a_different_recipe_does_not_resume_the_run(tmp_path):
    train(tmp_path / "run", steps=5)
    other_recipe = line.LineRecipe(optimizer=AdamW(learning_rate=0.5), limits=Limits(epochs=3, batch=4))
    with pytest.raises(InvalidInputError, match="a different recipe"):
        line.run(other_recipe, tmp_path / "run")


def test_a_run_that_predates_a_setting_resumes_with_its_default(tmp_path):
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Data(line.Data):
        names: tuple[str, ...] = ()
        inside: line.Network = field(default_factory=line.Network)

    def resumed(**settings):
        return line.run(replace(line.recipe(), data=Data(**settings)), tmp_path / "run")

    train(tmp_path / "whole")
    train(tmp_path / "run", steps=12)
    with pytest.raises(InvalidInputError, match=r"a different recipe: data\.names is \['x'\], not None"):
        resumed(names=("x",))
    with pytest.raises(InvalidInputError, match=r"a different recipe: data\.length is 36, not 40"):
        resumed(length=36)
    line.run(replace(line.recipe(steps=17), data=Data()), tmp_path / "run")
    assert resumed().steps == 30  # from a checkpoint that was written with the setting
    assert same_weights(weights(tmp_path / "whole", 30), weights(tmp_path / "run", 30))


def test_early_stopping(tmp_path):
    result = train(tmp_path / "run", epochs=50, patience=2, min_delta=10.0)
    assert result.reason == "early" and result.steps == 30
    assert result.best_step == min(result.history, key=lambda entry: entry["loss"])["step"]
    resumed = train(tmp_path / "run", epochs=50, patience=2, min_delta=10.0)
    assert resumed.reason == "early" and resumed.steps == 30


def test_a_run_that_stopped_early_continues_with_a_smaller_min_delta(tmp_path):
    train(tmp_path / "whole")
    assert train(tmp_path / "run", patience=1, min_delta=10.0).reason == "early"
    resumed = train(tmp_path / "run", patience=1, min_delta=1e-9, evaluation_batch=5)
    assert (resumed.steps, resumed.reason) == (30, "epochs")
    assert same_weights(weights(tmp_path / "whole", 30), weights(tmp_path / "run", 30))


@pytest.mark.parametrize(("name", "value"), [("batch", 8), ("clip_norm", 0.5), ("monitor", "samples"), ("mode", "max")])
def test_limits_that_affect_weights_or_kept_checkpoints_cannot_change(tmp_path, name, value):
    train(tmp_path, steps=5)
    with pytest.raises(InvalidInputError, match=rf"a different recipe: limits\.{name} is "):
        train(tmp_path, **{name: value})


def test_a_run_that_was_stopped_before_its_first_step_can_be_started_again(tmp_path):
    class Slow(line.Data):
        def train(self, input=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        line.run(replace(line.recipe(), data=Slow()), tmp_path)
    assert train(tmp_path).steps == 30


def test_a_run_that_reached_its_time_limit_stays_ended(tmp_path):
    first = train(tmp_path, minutes=1e-9)
    assert first.reason == "minutes" and first.steps == 5
    resumed = train(tmp_path, minutes=1e-9)
    assert resumed.steps == 5 and resumed.history == first.history


def test_a_loss_that_is_not_finite_is_never_saved(tmp_path):
    class Broken(line.Regression):
        def loss(self, model, batch):
            return {"square": super().loss(model, batch)["square"] * float("nan")}

    with pytest.raises(FloatingPointError, match="at step 1 the loss is nan"):
        train(tmp_path, Broken)
    assert not list((tmp_path / "checkpoints").glob("step-*"))


def test_a_gradient_that_is_not_finite_is_never_saved(tmp_path):
    class Steep(line.Regression):
        calls = 0

        def loss(self, model, batch):
            Steep.calls += 1
            square = super().loss(model, batch)["square"]
            # The derivative of the square root at zero is infinite.
            return {"square": square, "root": (square * 0).sqrt() * 0 if Steep.calls == 15 else square * 0}

    with pytest.raises(FloatingPointError, match=r"at step 15 .* gradient norm nan"):
        train(tmp_path, Steep)
    assert [path.name for path in sorted((tmp_path / "checkpoints").glob("step-*"))] == [
        "step-00000005",
        "step-00000010",
    ]


def falling_apart(losses: dict[int, float]):
    """A task with given validation losses by step."""

    class Given(line.Regression):
        steps = 0

        def loss(self, model, batch):
            Given.steps += 1
            return super().loss(model, batch)

        def scores(self):
            scores = line.Scores()
            scores.summary = lambda: {"loss": losses[Given.steps]}
            return scores

    return Given


def test_a_stop_within_an_epoch_does_not_affect_early_stopping(tmp_path):
    losses = {10: 3.0, 20: 3.0, 25: 3.0, 30: 1.0}
    task = falling_apart(losses)

    def go(**limits):
        return train(tmp_path, task, patience=2, **limits)

    assert go(steps=25).reason == "early"
    result = go()
    assert (result.steps, result.reason, result.best_step) == (30, "epochs", 30)


def test_the_best_scheduled_checkpoint_is_kept_beside_a_better_extra_one(tmp_path):
    losses = {10: 1.0, 20: 2.0, 25: 0.5, 28: 0.7, 30: 3.0}
    task = falling_apart(losses)

    def go(**limits):
        return train(tmp_path, task, keep=1, checkpoint_every=100, **limits)

    assert go(steps=25).best_step == 25
    assert go(steps=28).best_step == 28
    assert go().best_step == 10
    assert Checkpoints(tmp_path / "checkpoints", recipe_digest="").best().name == "step-00000010"


def test_only_one_process_trains_in_a_run_at_a_time(tmp_path):
    class Impatient(line.Regression):
        def loss(self, model, batch):
            with pytest.raises(InvalidInputError, match="another process is training in"):
                train(tmp_path)
            return super().loss(model, batch)

    train(tmp_path, Impatient, steps=1)


def test_a_directory_left_almost_empty_by_a_kill_can_be_used(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "run.lock").touch()
    assert train(tmp_path, steps=5).steps == 5


def test_a_number_of_steps_replaces_the_epochs(tmp_path):
    result = train(tmp_path, epochs=1, steps=25)
    assert (result.steps, result.reason) == (25, "steps") and result.epochs > 1


def test_a_damaged_newest_checkpoint_does_not_displace_new_ones(tmp_path):
    train(tmp_path, steps=20, keep=2)
    newest = tmp_path / "checkpoints" / "step-00000020" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    (tmp_path / "checkpoints" / ".step-00000025").mkdir()
    assert train(tmp_path, keep=1).steps == 30
    assert (tmp_path / "checkpoints" / "step-00000030").is_dir()
    assert not list((tmp_path / "checkpoints").glob(".step-*"))


def test_a_run_does_not_resume_on_data_that_has_grown(tmp_path):
    class Grown(line.Data):
        def train(self, input=None):
            return line.Points(41)

    Grown.__name__ = "Data"
    train(tmp_path, steps=5)
    with pytest.raises(InvalidInputError, match="started on 40 training samples, and the data set now has 41"):
        line.run(replace(line.recipe(), data=Grown()), tmp_path)


def test_a_resumed_run_records_every_step_once_in_valid_json(tmp_path):
    train(tmp_path, steps=20, log_every=1)
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000020")
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"time": 1, "event": "tr')
    train(tmp_path, log_every=1)
    events = [json.loads(row) for row in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e["event"] == "train"] == list(range(1, 31))
    with Events(tmp_path, 30) as more:
        more.write("train", 31, loss=float("nan"), norm=2.0)
    assert '"loss": null, "norm": 2.0' in (tmp_path / "events.jsonl").read_text()


@pytest.mark.parametrize("limits", [{"log_every": 0}, {"batch": -1}, {"checkpoint_every": 0}, {"minutes": 0.0}])
def test_invalid_limits_are_refused(limits):
    with pytest.raises(InvalidInputError, match=r"limits\."):
        Limits(**limits)


def test_a_directory_with_other_files_is_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InvalidInputError, match="not a run"):
        train(tmp_path)


def test_a_directory_that_cannot_be_created_is_refused():
    with pytest.raises(InvalidInputError, match=r"No such file or directory \(/proc/absent\); .*--out"):
        train(Path("/proc/absent/run"))


def test_tasks_of_srun_in_one_directory_are_told_of_torchrun(tmp_path, monkeypatch):
    run = Run(tmp_path, "line", "tiny")
    with run.claimed():
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
        with pytest.raises(InvalidInputError, match=r"srun started this command 2 times.*torchrun"), run.claimed():
            pass
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(InvalidInputError, match=r"name a new run$"), run.claimed():
            pass


def test_the_learning_rate_warms_up_and_restarts():
    schedule = CosineRestarts(warmup_steps=4, period=2, multiplier=2, floor=0.1)
    factors = [schedule.factor(step, 5) for step in range(4 + 10 + 20 + 1)]
    assert factors[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert factors[4] == factors[14] == factors[34] == 1.0
    assert factors[9] == pytest.approx(0.55)
    assert min(factors) >= 0.1


def test_warm_restarts_follow_torch():
    parameter = torch.nn.Parameter(torch.zeros(1))
    ours = CosineRestarts(warmup_steps=0, period=3, multiplier=2)
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=3, T_mult=2)
    for step in range(20):
        assert ours.factor(step, 1) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_steps_follow_torch():
    def rates(make):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = make(optimizer)
        for _ in range(60):
            yield schedule.get_last_lr()[0]
            optimizer.step()
            schedule.step()

    ours = list(rates(lambda optimizer: Steps(milestones=(2, 4.5), factor=0.2).build(optimizer, 10)))
    theirs = rates(lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [20, 45], gamma=0.2))
    assert ours == pytest.approx(list(theirs)) and ours[19:21] == pytest.approx([1.0, 0.2])
    warmed = list(rates(lambda optimizer: Steps(warmup_steps=3, milestones=(2,)).build(optimizer, 10)))
    assert warmed[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0]) and warmed[20] == pytest.approx(0.1)
    for wrong in ({"factor": 0.0}, {"milestones": (0.0,)}, {"warmup_steps": -1}):
        with pytest.raises(InvalidInputError, match="schedule: "):
            Steps(**wrong)


def test_a_recipe_survives_its_file():
    recipe = line.recipe(steps=7, minutes=1.5)
    assert from_mapping(line.LineRecipe, to_mapping(recipe)) == recipe


def test_a_recipe_with_a_wrong_value_is_refused():
    mapping = to_mapping(line.recipe())
    mapping["limits"]["batch"] = "many"
    with pytest.raises(InvalidInputError, match=r"limits\.batch"):
        from_mapping(line.LineRecipe, mapping)


def test_the_digest_ignores_the_length_of_a_run():
    assert digest(line.recipe(steps=7)) == digest(line.recipe())
    assert digest(line.recipe(min_delta=0.5, evaluation_batch=3)) == digest(line.recipe())
    assert digest(line.recipe(batch=8)) != digest(line.recipe())
