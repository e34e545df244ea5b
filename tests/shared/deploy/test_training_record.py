"""The training record of the weights in a manifest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shared.app import App
from shared.cli.reproduce import training_history
from shared.deploy.export import export, training_origin
from shared.engine.loop import fit
from shared.engine.run import Run
from tests.shared.deploy.test_export import app  # noqa: F401
from tests.shared.engine import line

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def train(path: Path, initial: Path | None) -> Path:
    fit(replace(line.recipe(), init=initial), Run(path, "line", "line"), device="cpu", quiet=True)
    return path


def test_a_manifest_records_all_earlier_trainings_of_its_weights(app: App, tmp_path: Path) -> None:  # noqa: F811
    first = train(tmp_path / "first", None)
    second = train(tmp_path / "second", first)
    artifact = export(second, app, tmp_path / "models", network=False)
    alone = export(first, app, tmp_path / "models", network=False).manifest.training
    steps = alone["steps"]
    assert "began_from" not in alone and steps > 0
    assert artifact.manifest.training["began_from"] == {
        name: alone[name] for name in ("recipe", "steps", "seconds", "device")
    }
    third = train(tmp_path / "third", artifact.path)
    training = export(third, app, tmp_path / "models", network=False).manifest.training
    assert training["began_from"]["artifact"] == "line 1"
    assert training["began_from"]["began_from"]["steps"] == steps
    assert (
        training_history(training)
        == f"{steps} steps in 0.0 h (cpu), after {steps} in 0.0 h (cpu), after {steps} in 0.0 h (cpu)"
    )


def test_only_the_name_is_known_of_a_file_or_a_missing_source(tmp_path: Path) -> None:
    (tmp_path / "published.pth").touch()
    assert training_origin(None) is None
    for name in ("published.pth", "gone"):
        assert training_origin(tmp_path / name) == {"file": name}
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "manifest.json").write_text("{")
    assert training_origin(torn) == {"file": "torn"}
    stated = {"steps": 100, "seconds": 7200, "device": "cuda", "began_from": {"file": "published.pth"}}
    assert training_history(stated) == "100 steps in 2.0 h (cuda), after weights of published.pth"


def test_a_run_initialised_from_itself_does_not_loop(tmp_path: Path) -> None:
    run = train(tmp_path / "run", None)
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("init: null", f"init: {run}"))
    found = training_origin(run)
    assert found is not None and found["began_from"] == {"file": "run"}
