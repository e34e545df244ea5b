"""``trivium runs``: compares runs from the files in their directories."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from shared import cli
from shared.atomic_files import file_lock, is_locked
from shared.errors import InvalidInputError
from shared.observe.events import Events, read_events, read_last_events
from shared.optimizers import SGD, AdamW
from tests.shared.engine import line


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    return tmp_path


def list_runs(capsys, *folders):
    """The runs by name and the comparisons, from --json."""
    capsys.readouterr()
    assert cli.main(["runs", *map(str, folders), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    return {row["run"].split("/")[-1]: row for row in found["runs"]}, found["comparisons"]


def recipe_with_learning_rate(rate, **limits):
    return replace(line.recipe(**limits), optimizer=AdamW(learning_rate=rate))


def test_runs_are_compared_by_score_loss_and_the_settings_that_differ(working_directory, capsys):
    first = line.run(recipe_with_learning_rate(1e-3), working_directory / "runs" / "one")
    second = line.run(recipe_with_learning_rate(3e-4, steps=25), working_directory / "runs" / "deeper" / "other")
    runs, (comparison,) = list_runs(capsys)
    assert (runs["one"]["app"], runs["one"]["recipe"], runs["one"]["steps"]) == ("line", "line", 30)
    assert runs["one"]["best"] == first.scores["loss"] and runs["one"]["best_step"] == first.best_step
    assert runs["other"]["best"] == second.scores["loss"] and runs["other"]["steps"] == 25
    last = [
        event for event in read_events(working_directory / "runs" / "one" / "events.jsonl") if event["event"] == "train"
    ][-1]
    assert runs["one"]["loss"] == last["loss"]
    assert (runs["one"]["state"], runs["one"]["why"]) == ("ended", "epochs") and runs["other"]["why"] == "steps"
    assert comparison["runs"] == ["runs/deeper/other", "runs/one"]
    assert comparison["settings"] == {"optimizer.learning_rate": [3e-4, 1e-3], "limits.steps": [25, None]}

    assert cli.main(["runs"]) == 0
    printed = capsys.readouterr().out
    assert f"loss {first.scores['loss']:.4g}" in printed and "ended: epochs" in printed
    assert "settings that differ between the 2 runs of line with " in printed
    assert "  optimizer.learning_rate 0.0003 (runs/deeper/other), 0.001 (runs/one)\n" in printed
    assert "  limits.steps 25 (runs/deeper/other), - (runs/one)\n" in printed


def test_runs_with_the_same_value_are_listed_together(working_directory, capsys):
    for name, rate in {"a": 1e-3, "b": 3e-4, "c": 1e-3, "d": 3e-4}.items():
        line.run(recipe_with_learning_rate(rate, steps=5), working_directory / "runs" / name)
    assert cli.main(["runs"]) == 0
    assert "  optimizer.learning_rate 0.001 (runs/a, runs/c), 0.0003 (runs/b, runs/d)\n" in capsys.readouterr().out
    shutil.rmtree(working_directory / "runs" / "d")
    assert cli.main(["runs"]) == 0
    assert "  optimizer.learning_rate 0.0003 (runs/b), else 0.001\n" in capsys.readouterr().out


def test_settings_of_another_class_are_listed_if_the_runs_that_have_them_differ(working_directory, capsys):
    optimizers = {"adam": AdamW(), "slow": SGD(momentum=0.8), "fast": SGD(momentum=0.95)}
    for name, optimizer in optimizers.items():
        line.run(replace(line.recipe(steps=5), optimizer=optimizer), working_directory / "runs" / name)
    assert cli.main(["runs"]) == 0
    printed = capsys.readouterr().out
    assert "  optimizer AdamW (runs/adam), else SGD\n" in printed
    assert "  optimizer.momentum - (runs/adam), 0.95 (runs/fast), 0.8 (runs/slow)\n" in printed
    assert "optimizer.betas" not in printed and "optimizer.nesterov" not in printed
    assert "optimizer.betas" in list_runs(capsys)[1][0]["settings"]


@pytest.mark.parametrize(
    "damaged_line",
    [
        b"null",
        b"{}",
        b'{"event": "end"}',
        b'{"event": "end", "step": "7"}',
        b'{"event": ["end"], "step": 1}',
        b'{"event": "end", "step": NaN}',
        b'{"event": "end", "step": true}',
        b"\0" * 4096,
        b"\xff\xfe",
        b"[" * 60_000,
    ],
)
def test_a_damaged_line_of_the_events_is_skipped(working_directory, capsys, damaged_line):
    line.train(working_directory / "runs" / "one", steps=5)
    with (working_directory / "runs" / "one" / "events.jsonl").open("ab") as file:
        file.write(damaged_line + b"\n")
    runs, _ = list_runs(capsys)
    assert (runs["one"]["state"], runs["one"]["steps"]) == ("ended", 5)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("events.jsonl", '{"event": "train", "step": 1}\n{"event": "end", "step": 1}\n'),
        ("events.jsonl", '{"event": "train", "step": 1, "loss": "x"}\n{"event": "end", "step": 1}\n'),
        ("state.json", '{"progress": {"step": "5", "best_step": 5, "history": [1]}}'),
        ("state.json", '{"progress": {"step": 5, "best_step": [], "history": 7}}'),
        ("state.json", '{"progress": ' + "[" * 60_000),
        ("recipe.yaml", "app: a\nname: b\nrecipe: {limits: {monitor: loss}}\nclasses: 7\n"),
    ],
)
def test_a_damaged_run_does_not_hide_the_others(working_directory, capsys, file, content):
    for name in ("bad", "good"):
        line.train(working_directory / "runs" / name, steps=5)
    for path in (working_directory / "runs" / "bad").rglob(file):
        path.write_text(content)
    runs, _ = list_runs(capsys)
    assert runs["good"]["state"] == "ended" and runs["bad"]["state"] in ("ended", "unreadable")
    assert cli.main(["runs"]) == 0


@pytest.mark.parametrize("file", ["recipe.yaml", "events.jsonl", "result.json", "state.json"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_path_in_a_run_that_is_not_a_regular_file_is_not_read(working_directory, capsys, file, kind):
    line.train(working_directory / "runs" / "bad", steps=5)
    for path in list((working_directory / "runs" / "bad").rglob(file)):
        path.unlink()
        os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    runs, _ = list_runs(capsys)
    assert (runs["bad"]["state"], runs["bad"]["why"]) == ("unreadable", f"its {file} is not a regular file")


def test_a_partly_deleted_run_is_reported(working_directory, capsys):
    line.train(working_directory / "runs" / "no-checkpoints", steps=5)
    shutil.rmtree(working_directory / "runs" / "no-checkpoints" / "checkpoints")
    line.train(working_directory / "runs" / "no-events", steps=5)
    (working_directory / "runs" / "no-events" / "events.jsonl").unlink()
    runs, _ = list_runs(capsys)
    assert (runs["no-checkpoints"]["state"], runs["no-checkpoints"]["steps"]) == ("ended", 5)
    assert runs["no-checkpoints"]["best"] == runs["no-events"]["best"] is not None
    assert (runs["no-events"]["state"], runs["no-events"]["why"]) == ("unreadable", "its events.jsonl is missing")


def test_links_to_runs_on_another_disk_are_followed_once(working_directory, capsys):
    line.train(working_directory / "disk" / "one", steps=5)
    (working_directory / "runs").mkdir()
    (working_directory / "runs" / "linked").symlink_to(working_directory / "disk" / "one")
    (working_directory / "runs" / "same").symlink_to(working_directory / "disk")
    (working_directory / "runs" / "loop").symlink_to(working_directory / "runs")
    assert list(list_runs(capsys)[0]) == ["linked"]


def test_the_best_score_ignores_the_validation_at_an_early_stop(working_directory, capsys):
    from tests.shared.engine.test_loop import falling_apart

    task = falling_apart({10: 1.0, 20: 2.0, 25: 0.5, 30: 3.0})
    line.train(working_directory / "run", task, steps=25)
    assert list_runs(capsys, "run")[0]["run"]["best"] == 0.5
    line.train(working_directory / "run", task)
    assert (list_runs(capsys, "run")[0]["run"]["best"], list_runs(capsys, "run")[0]["run"]["best_step"]) == (1.0, 10)
    shutil.rmtree(working_directory / "run" / "checkpoints")
    (working_directory / "run" / "checkpoints").mkdir()
    assert list_runs(capsys, "run")[0]["run"]["best"] == 1.0, "result.json has it if the checkpoints are deleted"


def test_a_run_that_is_training_is_listed_as_running(working_directory, capsys):
    listed = {}

    class Watched(line.Regression):
        calls = 0

        def loss(self, model, batch):
            Watched.calls += 1
            if Watched.calls == 12:
                code = "import sys; from shared.cli.main import main; sys.exit(main(['runs', '.', '--json']))"
                environment = {**os.environ, "PYTHONPATH": str(line.ROOT)}
                completed = subprocess.run(
                    [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
                )
                listed.update(json.loads(completed.stdout)["runs"][0])
            return super().loss(model, batch)

    assert line.train(working_directory / "run", Watched).steps == 30
    assert (listed["state"], listed["steps"], listed["best_step"]) == ("running", 10, 10)
    assert list_runs(capsys, "run")[0]["run"]["state"] == "ended"


def test_interrupted_and_killed_runs_are_distinguished_from_completed_ones(working_directory, capsys):
    from tests.shared.engine.test_interruption import interrupted_at

    with pytest.raises(KeyboardInterrupt):
        line.train(working_directory / "stopped", interrupted_at(13, signal.SIGINT))
    line.train(working_directory / "killed", steps=15)
    events = (working_directory / "killed" / "events.jsonl").read_text().splitlines()
    (working_directory / "killed" / "events.jsonl").write_text("\n".join(events[:-1]) + "\n" + events[-1][:9])
    runs, _ = list_runs(capsys, ".")
    assert (runs["stopped"]["state"], runs["stopped"]["why"], runs["stopped"]["steps"]) == (
        "interrupted",
        "by a signal",
        13,
    )
    assert runs["killed"]["state"] == "interrupted" and "no end was recorded (killed" in runs["killed"]["why"]
    line.train(working_directory / "stopped")
    assert list_runs(capsys, ".")[0]["stopped"]["state"] == "ended"


def test_a_failed_run_is_listed_with_the_reason(working_directory, capsys):
    class Broken(line.Regression):
        def loss(self, model, batch):
            return {"square": super().loss(model, batch)["square"] * float("nan")}

    with pytest.raises(FloatingPointError):
        line.train(working_directory / "nan", Broken)

    class Large(line.Regression):
        def loss(self, model, batch):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        line.train(working_directory / "memory", Large)
    with pytest.raises(InvalidInputError, match="the task's scores"):
        line.train(working_directory / "refused", monitor="map")
    runs, _ = list_runs(capsys, ".")
    assert runs["nan"]["state"] == "failed" and "DivergenceError: at step 1 the loss is nan" in runs["nan"]["why"]
    assert runs["memory"]["state"] == "failed" and "CUDA out of memory." in runs["memory"]["why"]
    assert (runs["refused"]["state"], runs["refused"]["why"]) == ("interrupted", "before its first step")


def test_an_error_is_reported_although_the_disk_is_full(working_directory, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with pytest.raises(ArithmeticError, match="the one that counts"), Events(working_directory) as events:
        monkeypatch.setattr(events, "write", full)
        raise ArithmeticError("the one that counts")


def test_an_unreadable_run_does_not_hide_the_others(working_directory, capsys):
    line.train(working_directory / "good", steps=5)
    for name, text in {"torn": "app: [", "other": "app: line\nname: x\nrecipe: {}\n"}.items():
        (working_directory / name / "checkpoints").mkdir(parents=True)
        (working_directory / name / "recipe.yaml").write_text(text)
    runs, comparisons = list_runs(capsys, ".")
    assert runs["good"]["state"] == "ended" and not comparisons
    assert runs["torn"]["state"] == "unreadable" and "cannot be read as YAML" in runs["torn"]["why"]
    assert runs["other"]["why"] == "its recipe.yaml lacks limits.monitor"
    assert cli.main(["runs", "."]) == 0


@pytest.mark.parametrize(
    ("folders", "message"),
    [((), "there is no directory runs; name runs"), (("empty",), "there is no run in empty; trivium train APP --out")],
)
def test_a_folder_without_runs_is_reported(working_directory, capsys, folders, message):
    (working_directory / "empty").mkdir()
    assert cli.main(["runs", *folders]) == 2
    assert message in capsys.readouterr().err


def test_the_command_loads_no_large_library(working_directory):
    line.train(working_directory / "runs" / "one", steps=5)
    code = "import sys; from shared.cli.main import main; main(['runs']); print(*sys.modules, file=sys.stderr)"
    environment = {**os.environ, "PYTHONPATH": str(line.ROOT)}
    completed = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "runs/one" in completed.stdout and not set(completed.stderr.split()) & {"torch", "numpy", "tensorboard"}


def test_only_the_end_of_a_long_event_file_is_read(working_directory):
    with (working_directory / "events.jsonl").open("w") as file:
        for step in range(5000):
            file.write(json.dumps({"event": "train", "step": step, "loss": 1.0}) + "\n")
    last = read_last_events(working_directory / "events.jsonl")
    assert last[-1]["step"] == 4999 and 100 < len(last) < 2000
    assert read_last_events(working_directory / "nowhere.jsonl") == []


def test_checking_a_lock_does_not_acquire_it(working_directory):
    assert not is_locked(working_directory / "lock") and not (working_directory / "lock").exists()
    with file_lock(working_directory / "lock"):
        assert is_locked(working_directory / "lock")
    assert not is_locked(working_directory / "lock")
