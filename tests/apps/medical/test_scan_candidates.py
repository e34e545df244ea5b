"""The second stage on the user's scans: the recipe ``candidates`` with the data sets of real scans."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from apps.medical.adapters.nifti import nifti
from apps.medical.app import app
from apps.medical.datasets.marks import Marks
from apps.medical.datasets.scan_candidates import MarksCandidates
from apps.medical.inference.partners import is_trained_for
from apps.medical.predictor import NodulePredictor
from apps.medical.recipes import candidates, tiny
from apps.medical.types import ChestInput
from shared import cli
from shared.data.build_cache import packs_folder
from shared.data.order import Key
from shared.deploy.export import export
from shared.deploy.programs.store import weights_digest
from shared.deploy.registry import shipped
from shared.engine.loop import fit
from shared.engine.run import Run
from shared.errors import InvalidInputError
from shared.recipe_file import read_recipe_file
from shared.recipes import recipe_of
from tests.apps.medical.chests import chest

SIZE = (16, 16, 8)
pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture
def detector(untrained: NodulePredictor, monkeypatch: pytest.MonkeyPatch) -> NodulePredictor:
    """A detector with random weights in place of the shipped one, which would take minutes."""
    monkeypatch.setattr(NodulePredictor, "load", lambda artifacts, device: copy.copy(untrained))
    return untrained


@pytest.fixture
def folder(tmp_path: Path, untrained: NodulePredictor) -> Path:
    """Three scans, each with a nodule where the detector's best candidate is."""
    root = tmp_path / "ct"
    root.mkdir()
    low, high = untrained.candidates(chest()).ends_lps_mm()
    x, y, z = ((low[0] + high[0]) / 2).tolist()
    for name in ("a", "b", "c"):
        (root / f"{name}.nii.gz").write_bytes(nifti(chest()))
    rows = "".join(f"{name},{x},{y},{z},9\n" for name in ("a", "b", "c"))
    (root / "marks.csv").write_text(f"scan,x,y,z,diameter_mm\n{rows}")
    return root


def test_candidates_of_own_scans_are_nodules_or_false_positives(folder: Path, detector: NodulePredictor) -> None:
    data = MarksCandidates(root=folder, marks=Path("marks.csv"), size=SIZE, per_scan=20)
    training, validation = data.train(ChestInput()), data.validation(ChestInput())
    assert 2 <= training.labels.sum() < len(training) <= 2 * 2 * 20
    assert 1 <= validation.labels.sum() < len(validation) <= 2 * 20
    batch = training.batch(np.arange(4), Key(seed=0, epoch=0))
    assert batch["image"].shape == (4, 2, *SIZE) and batch["known"].shape == (4, 2)
    facts = data.facts(ChestInput())
    assert facts["validation candidates"] == (
        f"{len(validation)} in 1 scans, {int(validation.labels.sum())} of them on nodules"
    )
    assert [scan.name for scan in data.validation_scans()] == [scan.name for scan in data.split().validation]


def test_candidates_are_found_once_and_anew_if_the_marks_change(
    folder: Path, detector: NodulePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = MarksCandidates(root=folder, marks=Path("marks.csv"), size=SIZE, per_scan=5)
    data.train(ChestInput())
    monkeypatch.setattr(NodulePredictor, "load", None)
    assert data.train(ChestInput()).labels.any()
    (folder / "marks.csv").write_text((folder / "marks.csv").read_text().replace(",9\n", ",11\n"))
    with pytest.raises(TypeError):
        data.train(ChestInput())


@pytest.mark.filterwarnings("ignore")
def test_the_recipe_trains_and_exports_on_own_scans(folder: Path, detector: NodulePredictor, tmp_path: Path) -> None:
    run = tmp_path / "run"
    where = ["--data", "marks", "--data.root", str(folder), "--data.marks", "marks.csv", "--data.per-scan", "5"]
    sizes = ["--data.size", *map(str, SIZE), "--model.size", *map(str, SIZE), "--model.channels", "2"]
    command = ["train", "medical", "--recipe", "candidates", *where, *sizes, "--limits.epochs", "1"]
    assert cli.main([*command, "--out", str(run), "--device", "cpu"]) == 0
    recorded = yaml.safe_load((run / "recipe.yaml").read_text())
    assert recorded["recipe"]["data"]["marks"] == "marks.csv" and recorded["recipe"]["data"]["per_scan"] == 5
    assert isinstance(recipe_of(app, read_recipe_file(run / "recipe.yaml")).data, MarksCandidates)
    artifact = export(run, app, tmp_path / "models", network=False)
    assert is_trained_for(artifact, shipped(app)[0])
    assert artifact.manifest.data["detector"] == weights_digest(shipped(app)[0])
    assert artifact.manifest.data["synthetic"] is False and artifact.manifest.data["scans"] == [2, 1]
    assert artifact.manifest.calibration["scans"] == 1 and artifact.manifest.calibration["synthetic"] is False


def test_a_second_stage_is_not_trained_without_a_hit(folder: Path, detector: NodulePredictor) -> None:
    (folder / "marks.csv").write_text("scan,x,y,z,diameter_mm\na,0,0,5000,9\nb,0,0,5000,9\nc,0,0,5000,9\n")
    data = MarksCandidates(root=folder, marks=Path("marks.csv"), size=SIZE, per_scan=5)
    with pytest.raises(
        InvalidInputError, match=r"none of the \d+ candidates of .* in the training scans is on a nodule"
    ):
        data.train(ChestInput())


def test_data_of_the_other_stage_are_refused_before_they_are_packed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NodulePredictor, "load", None)
    where = {"root": folder, "marks": Path("marks.csv")}
    second_stage = replace(candidates(), data=Marks(**where))
    with pytest.raises(InvalidInputError, match=r"Marks has patches for a detector.*MarksCandidates"):
        fit(second_stage, Run(path=tmp_path / "second", app="medical", recipe_name="own"), quiet=True)
    detector = replace(tiny(), data=MarksCandidates(**where))
    with pytest.raises(InvalidInputError, match="MarksCandidates has candidates for a second stage"):
        fit(detector, Run(path=tmp_path / "first", app="medical", recipe_name="own"), quiet=True)
    assert not list(packs_folder().glob("*")) and not list(tmp_path.glob("first/*"))


def test_patches_of_another_size_than_the_network_s_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The network would accept them: it would be trained on larger patches than it is used on."""
    monkeypatch.setattr(NodulePredictor, "load", None)
    where = ["--data", "marks", "--data.root", str(folder), "--data.marks", "marks.csv"]
    command = ["train", "medical", "--recipe", "candidates", *where, "--out", str(folder / "run"), "--device", "cpu"]
    assert cli.main([*command, "--model.size", *map(str, SIZE)]) == 2
    assert "data.size is (32, 32, 16), but model.size is (16, 16, 8)" in capsys.readouterr().err


def test_only_data_sets_with_candidates_and_detectors_are_accepted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "medical", "--recipe", "candidates", "--data"]
    assert cli.main([*command, "synthetic"]) == 2
    assert "this recipe of medical has no data set 'synthetic'; it has luna16, lidc, marks" in capsys.readouterr().err
    marks = [*command, "marks", "--data.root", str(folder), "--data.marks", "marks.csv", "--data.detector"]
    assert cli.main([*marks, str(shipped(app)[1].path)]) == 2
    assert "is the model lung_nodule_candidates; give the artifact of a detector" in capsys.readouterr().err
