"""The command line on a user's own data, weights and files, with a fourth application."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from shared import cli
from shared.app import find, on_use
from shared.deploy.artifact import open_artifact
from tests.shared.engine import line
from tests.shared.line_app import make_app, tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture
def app(tmp_path, monkeypatch):
    """Installs the application; arguments change its fields."""

    def install(**changes):
        line = make_app(tmp_path / "line", **changes)
        monkeypatch.setattr("shared.app.installed", lambda: {"line": line})
        monkeypatch.setattr("shared.cli.models.installed", lambda: {"line": line})
        return line

    monkeypatch.chdir(tmp_path)
    install()
    return install


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    save_file(line.Network().build().state_dict(), tmp_path / "line.safetensors")
    return tmp_path / "line.safetensors"


def train(*words: str) -> int:
    return cli.main(["train", "line", "--recipe", "tiny", "--out", "run", "--device", "cpu", *words])


def test_the_data_option_replaces_the_data_set_of_the_recipe(app, capsys):
    assert train("--data", "folder", "--data.root", "points", "--data.count", "20", "--limits.steps", "2") == 0
    printed = capsys.readouterr().out
    assert "points: 20" in printed and "folder: points" in printed and "2 steps" in printed
    recipe = yaml.safe_load(Path("run/recipe.yaml").read_text())["recipe"]
    assert recipe["data"]["root"] == "points" and recipe["data"]["count"] == 20
    assert recipe["limits"]["steps"] == 2


def test_required_settings_of_a_data_set_must_be_given(app, capsys):
    with pytest.raises(SystemExit) as stop:
        train("--data", "folder")
    assert stop.value.code == 2 and "--data.root" in capsys.readouterr().err
    assert not Path("run").exists()


@pytest.mark.parametrize("command", [["train"], ["evaluate"], ["calibrate"]])
def test_an_unknown_data_set_is_refused_with_the_known_names(app, command, capsys):
    assert cli.main([*command, "line", "--data", "stars", *(["--recipe", "tiny"] * (command == ["train"]))]) == 2
    assert "line has no data set 'stars'; it has points, folder" in capsys.readouterr().err


def test_a_run_on_a_data_set_is_resumed_evaluated_and_exported(app, capsys):
    data = ["--data", "folder", "--data.root", "points"]
    assert train(*data, "--limits.steps", "2") == 0
    assert train(*data) == 0
    assert cli.main(["evaluate", "line", "--run", "run", "--device", "cpu"]) == 0
    assert cli.main(["evaluate", "line", "--run", "run", "--device", "cpu", *data, "--limit", "3"]) == 0
    assert "Protocol" in capsys.readouterr().out
    assert cli.main(["export", "run"]) == 0
    assert open_artifact(Path("models/line/1")).manifest.data["description"] == "points in points"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--limits.epoch", "3"], "--limits.epoch; there is --limits.epochs;"),
        (["--epochs=3"], "--epochs=3; there is --limits.epochs;"),
        (["--optimizer.lr", "1e-4"], "--optimizer.lr; there is --optimizer.learning-rate;"),
        (
            ["--optimizer.momentum", "0.9"],
            "there is --optimizer.learning-rate, --optimizer.weight-decay, --optimizer.betas;",
        ),
        (["--output", "there"], "--output; there is --out;"),
        (["--data.root", "there"], "settings of another data set need --data NAME"),
        (["--data", "folder", "--data.root", "there", "--data.counts", "3"], "--data.counts; there is --data.count;"),
    ],
)
def test_an_unknown_setting_is_refused_with_a_suggestion(words, hint, app, capsys):
    assert train(*words) == 2
    error_output = capsys.readouterr().err
    assert hint in error_output and not Path("run").exists()
    command = "trivium train line --recipe tiny" + (" --data folder" if "folder" in words else "") + " -- --help"
    assert f"`{command}` lists all" in error_output
    with pytest.raises(SystemExit):
        cli.main(command.split()[1:])
    assert "--limits.epochs" in capsys.readouterr().out


def test_a_recipe_file_reproduces_the_run(app):
    assert train("--limits.batch", "5") == 0
    words = ["train", "line", "--recipe", "run/recipe.yaml", "--out", "again", "--device", "cpu"]
    assert cli.main(words) == 0
    original, repeated = (yaml.safe_load(Path(f"{run}/recipe.yaml").read_text()) for run in ("run", "again"))
    assert original == repeated and original["recipe"]["limits"]["batch"] == 5
    weights = [load_file(sorted(Path(run).glob("checkpoints/step-*/model*"))[-1]) for run in ("run", "again")]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_an_imported_checkpoint_is_calibrated_and_predicts(app, checkpoint, capsys):
    assert cli.main(["import", "line", "file", str(checkpoint), "--registry", "own"]) == 0
    artifact = open_artifact(Path("own/line/1"))
    assert artifact.manifest.source == {"importer": "file", "file": "line.safetensors", "data": None}
    assert artifact.manifest.has_network and artifact.manifest.inputs[0].name == "x"
    assert artifact.recipe()["recipe"].keys() == {"model", "input"}
    data = ["--data", "folder", "--data.root", "points"]
    assert cli.main(["calibrate", "line", "--artifact", "own/line/1", "--registry", "own", *data]) == 0
    calibrated = open_artifact(Path("own/line/2")).manifest
    assert calibrated.calibration == {"threshold": 0.5} and calibrated.files == artifact.manifest.files
    assert calibrated.training["calibrated_on"]["description"] == "points in points"
    assert cli.main(["calibrate", "line", "--artifact", "own/line/2", "--registry", "new", *data]) == 0
    assert open_artifact(Path("new/line/3")).manifest.training["calibrated_from"] == 2
    Path("one.csv").write_text("1,2\n3,4\n")
    words = ["predict", "line", "one.csv", "--artifact", "own/line/2", "--device", "cpu", "--out", "out"]
    assert cli.main(words) == 0
    assert len(json.loads(Path("out/result.json").read_text())["values"]) == 2


def test_an_import_says_what_it_does_before_it_is_done(app, checkpoint, capsys, monkeypatch):
    """A large checkpoint takes minutes to read, to compare and to export."""
    printed = []
    (importer,) = find("line").importers().values()

    def load(*arguments, **options):
        printed.append(capsys.readouterr())
        return importer.load(*arguments, **options)

    app(importers=lambda: {"file": replace(importer, load=load)})
    assert cli.main(["import", "line", "file", str(checkpoint), "--registry", "own"]) == 0
    assert printed[0].err == f"reading {checkpoint} (file)\n" and not printed[0].out
    written = capsys.readouterr()
    assert written.err == "writing the artifact to own, with its network as ONNX if possible\n"
    assert "file: line.safetensors" in written.out


def test_calibrate_prints_only_the_settings_that_change(app, checkpoint, capsys):
    measured = {"recall": 0.75, "rows": 20}
    app(calibrate=lambda recipe, model: {"threshold": 0.5, "measured": measured, "curve": list(range(100))})
    assert cli.main(["import", "line", "file", str(checkpoint), "--registry", "own"]) == 0
    words = ["calibrate", "line", "--registry", "own", "--data", "folder", "--data.root", "points"]
    capsys.readouterr()
    assert cli.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:-1] == [
        "measured.recall: - -> 0.75",
        "measured.rows: - -> 20",
        "curve: changed",
        "unchanged: threshold",
    ]
    assert cli.main(words) == 0
    assert capsys.readouterr().out.splitlines()[1:-1] == ["unchanged: threshold, measured, curve"]


def test_by_default_the_newest_version_in_the_registry_is_calibrated(app, checkpoint, capsys):
    import_line = ["import", "line", "file", str(checkpoint), "--registry"]
    for registry in ("line/weights", "line/weights", "own"):
        assert cli.main([*import_line, registry]) == 0
    words = ["--data", "folder", "--data.root", "points"]
    capsys.readouterr()
    assert cli.main(["calibrate", "line", "--registry", "own", *words]) == 0
    assert Path("calibrating own/line/1") == Path(capsys.readouterr().out.splitlines()[0])
    assert open_artifact(Path("own/line/2")).manifest.training["calibrated_from"] == 1
    assert cli.main(["calibrate", "line", "--registry", "empty", *words]) == 0
    assert open_artifact(Path("empty/line/3")).manifest.training["calibrated_from"] == 2


def test_a_detector_with_a_second_stage_is_calibrated_together_with_it(app, checkpoint):
    for _ in range(2):
        assert cli.main(["import", "line", "file", str(checkpoint), "--registry", "own"]) == 0
    calls = []

    def calibrate_both(recipe, model, first):
        calls.append((first.manifest.version, recipe.data.fingerprint()["description"]))
        return {"threshold": 0.25}

    second_stages = {1: [open_artifact(Path("own/line/2"))]}
    app(
        served_with=lambda artifact, *registries: second_stages.get(artifact.manifest.version, []),
        calibrate_second=calibrate_both,
    )
    words = ["--registry", "own", "--data", "folder", "--data.root", "points"]
    assert cli.main(["calibrate", "line", "--artifact", "own/line/1", *words]) == 0
    written = open_artifact(Path("own/line/3")).manifest
    assert calls == [(1, "points in points")] and written.calibration == {"threshold": 0.25}
    assert written.training["calibrated_from"] == 2
    assert cli.main(["calibrate", "line", "--artifact", "own/line/2", *words]) == 0
    assert open_artifact(Path("own/line/4")).manifest.calibration == {"threshold": 0.5} and len(calls) == 1


def test_the_importer_need_not_be_named_if_there_is_only_one(app, checkpoint, capsys):
    assert cli.main(["import", "line", str(checkpoint), "--data", "folder", "--data.root", "mine"]) == 0
    assert open_artifact(Path("models/line/1")).manifest.source["data"] == "points in mine"
    assert cli.main(["import", "line", "file", "a", "b"]) == 2
    assert "trivium import line file FILE" in capsys.readouterr().err


def test_a_network_that_cannot_be_exported_is_imported_without_onnx(app, checkpoint):
    def no_network(recipe, model):
        raise NotImplementedError("this operator has no ONNX form")

    app(dense=no_network)
    assert cli.main(["import", "line", "file", str(checkpoint)]) == 0
    manifest = open_artifact(Path("models/line/1")).manifest
    assert not manifest.has_network and manifest.inputs == () and "no ONNX form" in manifest.source["without_onnx"]
    assert not Path("models/line/config.pbtxt").exists()


def test_an_export_without_onnx_says_why_and_what_still_computes_it(app, capsys):
    def no_network(recipe, model):
        raise NotImplementedError("this operator has no ONNX form")

    app(dense=no_network)
    assert train("--data", "folder", "--data.root", "points", "--limits.steps", "2") == 0
    assert cli.main(["export", "run", "--programs", "onnx,openvino"]) == 2
    assert "openvino cannot be made: this operator has no ONNX form" in capsys.readouterr().err
    assert not list(Path("models").glob("line/[0-9]*"))
    assert cli.main(["export", "run"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "no ONNX was made: this operator has no ONNX form" in printed and "Triton" in printed
    assert not open_artifact(Path("models/line/1")).manifest.has_network


def test_an_imported_model_needs_a_data_set_to_be_scored_on(app, checkpoint, capsys):
    assert cli.main(["import", "line", "file", str(checkpoint)]) == 0
    assert cli.main(["evaluate", "line", "--artifact", "models/line/1", "--device", "cpu"]) == 2
    assert "--data NAME" in capsys.readouterr().err


def test_without_a_protocol_a_data_set_is_scored_as_in_training(app, checkpoint, capsys):
    app(evaluate=None)
    assert cli.main(["import", "line", "file", str(checkpoint)]) == 0
    words = ["evaluate", "line", "--artifact", "models/line/1", "--device", "cpu"]
    assert cli.main([*words, "--data", "folder", "--data.root", "x"]) == 0
    assert "loss" in capsys.readouterr().out


def test_result_files_are_scored_without_a_model(app, capsys):
    assert cli.main(["evaluate", "line", "--results", "a.csv", "--truth=b.csv"]) == 0
    assert "a.csv" in capsys.readouterr().out
    assert cli.main(["evaluate", "line", "--results", "a.csv"]) == 2
    assert "name --results and --truth" in capsys.readouterr().err
    assert cli.main(["evaluate", "line", "--results"]) == 2
    app(score_files=None)
    assert cli.main(["evaluate", "line", "--results", "a.csv"]) == 2


def test_models_lists_recipes_data_sets_and_importers(app, capsys):
    assert cli.main(["models"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "A few steps." in printed and "--data.root" in printed and "Reads a safetensors file." in printed


def test_models_lists_recipes_that_are_imported_on_use(app, capsys):
    recipes = {"deferred": on_use("tests.shared.line_app:tiny"), "changed": partial(tiny), "plain": lambda: tiny()}
    app(recipes=lambda: recipes)
    assert cli.main(["models", "line"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert [f"{name} │ A few steps." in printed for name in recipes] == [True, True, False] and "plain" in printed


def test_an_application_that_ships_no_model_says_so(app, monkeypatch, capsys):
    monkeypatch.setattr("shared.cli.programs.installed", lambda: {"line": app()})
    Path("points.csv").write_text("1,2\n")
    assert cli.main(["programs"]) == 0  # of the other applications
    assert cli.main(["programs", "line"]) == 2
    assert cli.main(["predict", "line", "points.csv", "--out", "out"]) == 2
    assert capsys.readouterr().err.count("line ships no model; train one and name the artifact") == 2


def test_a_program_is_refused_for_a_predictor_that_uses_none(app, capsys):
    assert train() == 0 and cli.main(["export", "run", "--registry", "models"]) == 0
    artifact = ["--artifact", "models/line/1"]
    assert cli.main(["programs", "line", *artifact]) == 0
    assert "computes with modules of its own" in capsys.readouterr().out
    Path("points.csv").write_text("1,2\n")
    predict = ["predict", "line", "points.csv", *artifact, "--out", "out"]
    assert cli.main([*predict, "--program", "onnx"]) == 2
    assert "leave out --program" in capsys.readouterr().err
    assert cli.main(predict) == 0
