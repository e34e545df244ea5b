from __future__ import annotations

import logging
import resource
import shutil
import subprocess
import sys

import pytest

from shared import cli
from shared.app import find
from shared.optimizers import SGD, Steps
from shared.recipes import choose_recipe
from tests.shared.serve.echo import write_artifact

COMMANDS = (
    "train",
    "evaluate",
    "predict",
    "compare",
    "export",
    "serve",
    "reproduce",
    "data",
    "doctor",
    "import",
    "calibrate",
    "models",
    "runs",
)


def imported(arguments: list[str]) -> tuple[set[str], float]:
    """The modules that a command loads, and the CPU-seconds that it takes."""
    code = (
        "import sys; from shared import cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)"
    )
    start = processor_seconds()
    completed = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return set(completed.stderr.split()), processor_seconds() - start


def processor_seconds() -> float:
    """The CPU-seconds of the child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_help_is_fast_and_loads_no_large_library():
    durations_s = []
    for _ in range(3):
        modules, seconds = imported(["--help"])
        durations_s.append(seconds)
        assert not modules & {"torch", "numpy", "fastapi", "monai", "mmdet3d", "pytorch_forecasting", "lightning"}
    assert min(durations_s) < 1.0


def test_finding_the_applications_loads_no_large_library():
    code = "import sys; from shared.app import installed; print(*installed()); print(*sys.modules, file=sys.stderr)"
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(completed.stdout.split()) >= {"medical", "driving", "finance"}
    heavy = {"torch", "numpy", "polars", "monai", "mmdet3d", "pytorch_forecasting", "lightning", "fastapi"}
    assert not set(completed.stderr.split()) & heavy


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"Example: trivium {command}" in " ".join(text.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "astronomy"], "there is no application 'astronomy'"),
        (["train", "finance", "--recipe", "huge"], "has no recipe 'huge'; it has"),
        (["predict", "finance", "nowhere.csv", "--out", "out"], "nowhere.csv does not exist"),
        (["predict", "finance", "--out", "out"], "name a file or a folder"),
        (["export", "nowhere"], "recipe.yaml does not exist"),
        (["data", "fetch"], "name the data sets to fetch"),
        (["data", "verify", "nothing"], "there is no data set nothing"),
        (["doctor", "--loudly"], "unknown argument --loudly"),
    ],
)
def test_invalid_input_exits_with_two_and_a_reason(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_command_exits_with_2(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["fly"])
    assert stop.value.code == 2


def test_doctor_finds_the_locked_packages(capsys):
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    for name in ("Python", "torch", "monai", "mmdet3d", "medical weights", "driving weights", "finance weights"):
        assert name in text


def test_doctor_reports_an_artifact_version_copied_under_another_number(capsys, monkeypatch, tmp_path):
    write_artifact(tmp_path, 1)
    monkeypatch.setenv("TRIVIUM_REGISTRY", str(tmp_path))
    assert cli.main(["doctor"]) == 0
    assert "own weights" in capsys.readouterr().out
    shutil.copytree(tmp_path / "echo" / "1", tmp_path / "echo" / "2")
    assert cli.main(["doctor"]) == 1
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())  # long paths wrap within their cells
    assert "fault" in text and "its manifest.json says echo version 1" in text


def test_optimizer_settings_are_options_of_train(tmp_path):
    import yaml

    out = tmp_path / "run"
    arguments = ["train", "finance", "--recipe", "tiny", "--limits.batch", "16", "--limits.steps", "1"]
    assert cli.main([*arguments, "--optimizer.learning-rate", "3e-4", "--out", str(out)]) == 0
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())["recipe"]
    assert recipe["optimizer"]["learning_rate"] == 3e-4 and recipe["limits"]["batch"] == 16


def test_another_optimizer_and_schedule_are_chosen_and_resumed(tmp_path):
    chosen = ["--optimizer", "sgd", "--optimizer.momentum", "0.8", "--schedule", "steps", "--schedule.milestones", "1"]
    train = ["train", "finance", "--recipe", "tiny", "--device", "cpu", *chosen]
    assert cli.main([*train, "--out", str(tmp_path / "whole")]) == 0
    for steps in (["--limits.steps", "3"], []):
        assert cli.main([*train, "--out", str(tmp_path / "parts"), *steps]) == 0
    runs = [choose_recipe(find("finance"), str(tmp_path / name / "recipe.yaml"))[1] for name in ("whole", "parts")]
    assert runs[0].optimizer == runs[1].optimizer == SGD(momentum=0.8)
    assert runs[0].schedule == runs[1].schedule == Steps(milestones=(1.0,))
    whole, parts = (
        max((tmp_path / name / "checkpoints").glob("step-*")) / "model.safetensors" for name in ("whole", "parts")
    )
    assert whole.read_bytes() == parts.read_bytes()


def test_remarks_of_a_result_without_findings_are_shown():
    from dataclasses import replace

    from shared.app import find
    from shared.cli.results import result_table, sentences

    without_table = replace(find("finance"), result_table=None)
    assert list(sentences({"findings": [], "remarks": ["Not a chest."]})) == ["Not a chest."]
    table = result_table(without_table, {"events": [], "notes": []})
    assert table.title.endswith("events: 0") and not table.rows
    price = {"observed": 47516.25, "box": [1, 2, 3, 4], "side": "above"}
    result = {"series": {"notes": ["Sorted."]}, "events": [price, {"side": "below"}]}
    assert list(sentences(result)) == ["Sorted."]
    table = result_table(without_table, result)
    assert table.columns == ["observed", "side"] and table.rows == [["47516.25", "above"], ["", "below"]]
    assert result_table(without_table, {"doubled": [1.0, 2.0]}) is None


def test_further_tables_are_printed_after_the_first_and_its_notes(capsys):
    from shared.app import Table
    from shared.cli.printing import print_table

    below = Table(title="Second", columns=("kind", "given"), rows=[("noise", "12")])
    print_table(Table(title="First", columns=("what",), rows=[("row",)], notes=("A note.",), further=(below,)))
    printed = capsys.readouterr().out
    places = [printed.index(word) for word in ("First", "row", "A note.", "Second", "noise")]
    assert places == sorted(places)


@pytest.mark.parametrize("out", ["{file}", "{file}/below"])
def test_an_unwritable_output_is_refused_before_anything_is_computed(out, tmp_path, capsys):
    (tmp_path / "file").touch()
    arguments = ["predict", "finance", str(tmp_path / "file"), "--out", out.format(file=tmp_path / "file")]
    assert cli.main(arguments) == 2
    assert "name a" in capsys.readouterr().err


def test_what_makes_the_first_prediction_slow_is_said_once(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TRIVIUM_PROGRAM", raising=False)
    # MONAI calls logging.info, which adds such a handler.
    monkeypatch.setattr(logging.root, "handlers", [logging.StreamHandler()])
    rows = "".join(f"2020-01-01T{hour:02}:{minute:02},{100 + minute}\n" for hour in range(8) for minute in range(60))
    (tmp_path / "series.csv").write_text("time,close\n" + rows)
    arguments = ["predict", "finance", str(tmp_path / "series.csv"), "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 0
    said = capfd.readouterr().err
    assert said.count("timing the programs of tft-anomaly, once on this machine") == 1
    assert said.count("tft-anomaly is computed by ") == 1 and " ms" in said
    assert cli.main(arguments) == 0
    assert "tft-anomaly" not in capfd.readouterr().err
