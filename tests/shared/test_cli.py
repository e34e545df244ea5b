from __future__ import annotations

import subprocess
import sys
import time

import pytest

from shared import cli

COMMANDS = ("train", "evaluate", "predict", "export", "serve", "reproduce", "data", "doctor")


def imported(arguments: list[str]) -> tuple[set[str], float]:
    """The modules that a command line loads, and the seconds it takes."""
    code = (
        "import sys; from shared import cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return set(done.stderr.split()), time.perf_counter() - began


def test_help_is_quick_and_loads_nothing_heavy():
    took = []
    for _ in range(3):
        modules, seconds = imported(["--help"])
        took.append(seconds)
        assert not modules & {"torch", "numpy", "fastapi", "monai", "mmdet3d", "pytorch_forecasting", "lightning"}
    assert min(took) < 1.0


def test_finding_the_applications_loads_nothing_heavy():
    code = "import sys; from shared.app import installed; print(*installed()); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) >= {"medical", "driving", "finance"}
    assert not set(done.stderr.split()) & {"torch", "monai", "mmdet3d", "pytorch_forecasting", "lightning", "fastapi"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"Example: trivium {command}" in " ".join(text.split())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "astronomy"], "there is no application 'astronomy'"),
        (["train", "finance", "--recipe", "huge"], "has no recipe 'huge'; it has"),
        (["predict", "finance", "nowhere.csv", "--out", "out"], "nowhere.csv does not exist"),
        (["predict", "finance", "--out", "out"], "name a file or a folder"),
        (["export", "nowhere"], "recipe.yaml does not exist"),
        (["data", "fetch"], "name what to fetch"),
        (["data", "verify", "nothing"], "there is no data set nothing"),
        (["doctor", "--loudly"], "unknown argument --loudly"),
    ],
)
def test_what_is_refused_exits_with_two_and_says_why(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_does_not_exist_exits_with_two(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["fly"])
    assert stop.value.code == 2


def test_doctor_finds_what_is_locked(capsys):
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    for name in ("Python", "torch", "monai", "mmdet3d", "medical weights", "driving weights", "finance weights"):
        assert name in text
