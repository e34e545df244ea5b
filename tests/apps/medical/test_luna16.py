"""LUNA16 as a data set: its published layout, patches, packing, training and evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from apps.medical.app import app
from apps.medical.datasets.luna16 import Luna16, lidc_patients
from apps.medical.datasets.packed_scans import open_scans
from apps.medical.recipes import overnight
from apps.medical.task import DetectionTask
from apps.medical.types import ChestInput
from shared import cli
from shared.data.order import Key
from shared.deploy.registry import shipped
from shared.engine.checkpoint import model_state
from shared.errors import InvalidInputError
from tests.apps.medical import data_folders
from tests.apps.medical.data_folders import PREFIX, UIDS

GRID = ChestInput(patch_size=(64, 64, 32))
pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture
def luna(tmp_path: Path, medical_data: Path) -> Path:
    return data_folders.luna16(tmp_path / "luna16", medical_data)


@pytest.mark.realdata
def test_luna16_is_read_as_published(luna):
    data = Luna16(root=luna, fold=1)
    split = data.split()
    assert [scan.name.removeprefix(PREFIX) for scan in split.training] == [UIDS[0], UIDS[2]]
    assert [scan.name.removeprefix(PREFIX) for scan in split.validation] == [UIDS[1]]
    assert [len(scan.nodules) for scan in (*split.training, *split.validation)] == [2, 0, 4]
    assert sum(len(scan.excluded) for scan in (*split.training, *split.validation)) == 122
    facts = data.facts(GRID)
    assert facts["scans"] == "2 for training, 1 for validation"
    assert facts["marks outside their scan"] == "1 for training, 3 for validation"
    assert facts["scans without marks"] == "1 for training, 0 for validation"
    assert facts["diameters"] == "4.2 to 23.9 mm, median 7.55"
    assert facts["patients in both parts"] == "0"
    fingerprint = data.fingerprint()
    assert fingerprint["synthetic"] is False and fingerprint["scans"] == [2, 1] and fingerprint["nodules"] == [2, 4]
    assert str(luna) not in str(fingerprint)


@pytest.mark.realdata
def test_the_box_of_a_real_nodule_contains_it(luna):
    """The packed scan is dense at the annotated nodule, and lung surrounds it."""
    split = Luna16(root=luna, fold=2).split()
    for packed, diameter in zip(open_scans(split.training, GRID), (7.131301, 4.406866), strict=True):
        (box,) = packed.boxes
        low, high = np.floor(box[:3]).astype(int), np.ceil(box[3:]).astype(int)
        hu = packed.voxels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] / 255 * 1324 - 1024
        inner = hu[tuple(slice(n // 4, max(n - n // 4, n // 4 + 1)) for n in hu.shape)]
        assert inner.mean() > -350
        assert np.median(packed.voxels / 255 * 1324 - 1024) < -600
        assert (box[3:] - box[:3]) * GRID.spacing_mm == pytest.approx([diameter] * 3, rel=1e-4)


@pytest.mark.realdata
def test_patches_are_drawn_around_nodules_candidates_and_anywhere(luna):
    data = Luna16(root=luna, fold=1, train_patches=40)
    patches = data.train(GRID)
    assert len(patches) == 40 and len(data.validation(GRID)) == 2
    batch = patches.batch(np.arange(40), Key(seed=3, epoch=1))
    assert batch["image"].shape == (40, 1, 64, 64, 32) and batch["image"].max() <= 1
    assert batch["spacing_mm"] == GRID.spacing_mm
    counts = [len(boxes) for boxes in batch["boxes"]]
    assert all(count >= 1 for count in counts[::2]) and min(counts[1::2]) == 0
    same_epoch = data.train(GRID).batch(np.array([7, 4]), Key(seed=3, epoch=1))
    assert torch.equal(same_epoch["image"], batch["image"][[7, 4]])
    next_epoch = patches.batch(np.array([7, 4]), Key(seed=3, epoch=2))
    assert not torch.equal(next_epoch["image"], same_epoch["image"])
    first, second = (data.validation(GRID).batch(np.array([0]), None) for _ in range(2))
    assert torch.equal(first["image"], second["image"]) and len(first["boxes"][0]) == 1


@pytest.mark.realdata
def test_a_scan_is_packed_once_regardless_of_its_marks(luna, monkeypatch):
    data = Luna16(root=luna)
    data.train(GRID)
    monkeypatch.setattr("apps.medical.datasets.scan_files.ScanFile.read", None)
    (luna / "CSVFILES" / "annotations_excluded.csv").unlink()
    data.train(GRID)
    with pytest.raises(TypeError):
        data.train(ChestInput(patch_size=(64, 64, 32), spacing_mm=(1.0, 1.0, 1.0)))


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: (root / "CSVFILES" / "annotations.csv").unlink(), "annotations.csv"),
        (
            lambda root: (root / "subset0").rename(root / "subset_0"),
            "no subset0 for validation; set data.fold to one of 1, 2",
        ),
        (lambda root: [path.rename(root / path.name[-1]) for path in root.glob("subset*")], "LUNA16's layout"),
    ],
)
def test_other_folder_layouts_are_rejected(luna, change, words):
    change(luna)
    with pytest.raises(InvalidInputError, match=words):
        Luna16(root=luna).train(GRID)


@pytest.mark.realdata
def test_one_patient_of_luna16_has_two_scans(medical_data):
    uids = (medical_data / "luna16_annotations" / "seriesuids.csv").read_text().split()
    patients = lidc_patients()
    assert len(uids) == 888 and len({patients[uid] for uid in uids}) == 887


@pytest.mark.realdata
def test_a_predictor_is_scored_on_whole_scans_by_luna16_s_protocol(luna, untrained):
    table = app.evaluate(untrained, Luna16(root=luna, fold=1), None)
    figures = {row[0]: row[1] for row in table.rows}
    assert figures["scans"] == "1" and figures["nodules"] == "4" and int(figures["nodules missed"]) >= 3
    assert 0 <= float(figures["CPM"]) <= 1 and "sensitivity at 1/8 FP/scan" in figures
    assert "LUNA16" in table.title and not any("synthetic" in note for note in table.notes)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.realdata
def test_the_command_trains_on_luna16_and_evaluates_the_model(luna, tmp_path, capsys):
    run = tmp_path / "run"
    where = ["--data", "luna16", "--data.root", str(luna), "--data.fold", "1"]
    few = ["--data.train-patches", "4", "--data.validation-patches", "2"]
    command = ["train", "medical", "--recipe", "tiny", *where, *few, "--out", str(run), "--device", "cpu"]
    assert cli.main(command) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "2 for training, 1 for validation" in output
    assert json.loads((run / "result.json").read_text())["steps"] == 4
    assert cli.main(["evaluate", "medical", "--run", str(run), *where]) == 0
    assert "CPM" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
@pytest.mark.realdata
def test_fine_tuning_the_shipped_weights_lowers_the_loss_on_real_scans(luna, tmp_path):
    """The shipped detector was trained only on synthetic chests; a few steps on two real crops fit it to these."""
    grid = ["--input.patch-size", "64", "64", "32", "--data.train-patches", "8"]
    where = ["--data", "luna16", "--data.root", str(luna), "--data.fold", "2", *grid]
    more = ["--init", str(shipped(app)[0].path), "--limits.epochs", "2", "--schedule.warmup-steps", "2"]
    command = ["train", "medical", "--recipe", "overnight", *where, *more, "--out", str(tmp_path / "run")]
    assert cli.main([*command, "--device", "cpu"]) == 0
    learnt = model_state(max((tmp_path / "run" / "checkpoints").glob("step-*")))
    data, recipe = Luna16(root=luna, fold=2, train_patches=8), overnight()
    batch = data.train(GRID).batch(np.arange(8), None)
    losses = []
    for weights in (shipped(app)[0].weights(), learnt):
        model = recipe.model.build(recipe.input)
        model.load_state_dict(weights)
        scores = DetectionTask().build().scores()
        DetectionTask().build().evaluate(model.eval(), batch, scores)
        losses.append(scores.summary()["loss"])
    assert losses[1] < 0.9 * losses[0]
