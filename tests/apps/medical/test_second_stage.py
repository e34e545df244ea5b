"""The second stage: its inputs, its training data, and its score in the results."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from apps.medical.app import app
from apps.medical.datasets import synthetic
from apps.medical.datasets.hard_candidates import (
    AMBIGUOUS_MM,
    MAX_SHIFT,
    HardCandidates,
    PackedCandidates,
    crop_ends,
    detector_marks,
)
from apps.medical.inference.candidates import Candidates
from apps.medical.inference.grid import Grid
from apps.medical.inference.second_stage import cut_patches, rescored, scalar_inputs
from apps.medical.models.classifier import NAME, CandidateClassifier
from apps.medical.predictor import NodulePredictor
from apps.medical.task import CandidateScores, CandidateTask
from apps.medical.types import AnnotatedScan, ChestInput, Nodule
from shared import cli, progress_bar
from shared.data.order import Key
from shared.deploy.artifact import describe_file, open_artifact
from shared.deploy.opening import open_predictor
from shared.deploy.predictor import Response, add_programs
from shared.deploy.programs.store import weights_digest
from shared.deploy.registry import shipped
from shared.errors import InvalidInputError
from tests.apps.medical.chests import annotated_chests, chest

SIZE = (16, 16, 8)


def marks(*middles: tuple[int, int, int]) -> Candidates:
    """Marks of 8 by 8 by 4 voxels in an image whose values are a hundredth of the index along x."""
    image = (torch.arange(90.0)[:, None, None] / 100).expand(90, 60, 30).contiguous()
    grid = Grid(np.zeros(3), np.array([0.7, 0.7, 1.25]), (90, 60, 30))
    boxes = np.array([[x - 4, y - 4, z - 2, x + 4, y + 4, z + 2] for x, y, z in middles], float)
    return Candidates(image, grid, boxes, np.linspace(0.9, 0.2, len(boxes)), np.zeros(len(boxes), np.int64))


def test_patches_of_both_scales_have_the_same_centre():
    patches = cut_patches(marks((45, 30, 15), (2, 30, 15)), SIZE).numpy()
    assert patches.shape == (2, 2, *SIZE)
    middle = [patches[0, scale].mean() for scale in (0, 1)]
    assert middle == pytest.approx([0.445, 0.445], abs=0.01)
    # The wider patch averages three voxels to one, and is 0 outside the image.
    assert np.ptp(patches[0, 0, :, 8, 4]) == pytest.approx(0.15, abs=1e-4)
    assert np.ptp(patches[0, 1, :, 8, 4]) == pytest.approx(0.45, abs=1e-4)
    assert np.all(patches[1, 0, :5] == 0) and patches[1, 0, 10:].min() > 0


def test_the_final_score_is_that_of_both_stages():
    """A network that inverts the detector's score reverses the order; one that repeats it changes nothing."""

    class Given(torch.nn.Module):
        def __init__(self, sign: float) -> None:
            super().__init__()
            self.sign = sign

        def forward(self, image: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
            return self.sign * known[:, 0]

    found = marks((45, 30, 15), (20, 30, 15), (70, 30, 15))
    assert rescored(found, Given(1.0), SIZE).scores == pytest.approx(found.scores, abs=1e-6)
    turned = rescored(found, Given(-1.0), SIZE)
    assert turned.scores == pytest.approx(1 - found.scores[::-1], abs=1e-6)
    assert np.array_equal(turned.boxes, found.boxes[::-1])
    assert len(rescored(marks(), Given(1.0), SIZE).scores) == 0
    assert scalar_inputs(found)[0] == pytest.approx([np.log(9), np.log(5.6)], abs=1e-4)


def test_marks_are_true_or_false_positives_or_left_out(untrained):
    scan = chest()
    first = untrained.candidates(scan)
    low, high = first.ends_lps_mm()
    here = (low[0] + high[0]) / 2
    nodule = Nodule(centre_lps_mm=tuple(here), mean_diameter_mm=8.0, score=1.0, box_lps_mm=(0, 0, 0, 1, 1, 1))
    patches, facts, labels = detector_marks(
        untrained, AnnotatedScan(name="0", volume=scan, nodules=(nodule,)), 50, SIZE
    )
    beyond = np.linalg.norm((low + high) / 2 - here, axis=1) - 4.0
    expected = (beyond < 0)[(beyond < 0) | (beyond > AMBIGUOUS_MM)][:50]
    assert labels.tolist() == expected.astype(float).tolist() and labels[0] == 1
    assert patches.shape == (len(labels), 2, *SIZE) and facts.shape == (len(labels), 2)
    nothing = detector_marks(untrained, AnnotatedScan(name="1", volume=scan, nodules=()), 5, SIZE)
    assert len(nothing[2]) == 5 and not nothing[2].any()


def test_cropping_the_ends_excludes_nodules_that_are_cut_in_two():
    scan = chest()
    whole = scan.size_ijk[2]
    box = (0, 0, 0, 1, 1, 1)
    nodules = tuple(
        Nodule(centre_lps_mm=tuple(scan.to_lps_mm([20, 20, k])), mean_diameter_mm=6.0, score=1.0, box_lps_mm=box)
        for k in np.arange(0, whole, 0.5)
    )
    for seed in range(5):
        short = crop_ends(AnnotatedScan(name="0", volume=scan, nodules=nodules), np.random.default_rng(seed))
        first = round(float(scan.to_index_ijk(np.array([short.volume.origin_lps_mm]))[0, 2]))
        last = first + short.volume.size_ijk[2]
        assert 0 < first < last < whole
        assert np.array_equal(short.volume.voxels_zyx, scan.voxels_zyx[first:last])
        radius = 3.0 / scan.spacing_mm[2]
        for marks, low, high in ((short.nodules, radius, radius), (short.excluded, -radius, -radius)):
            slices = short.volume.to_index_ijk(np.array([n.centre_lps_mm for n in marks]))[:, 2]
            assert len(slices) and slices.min() > low and slices.max() < short.volume.size_ijk[2] - 1 - high
        assert not set(short.nodules) & set(short.excluded)


def test_excluded_findings_of_a_scan_remain_excluded_when_its_ends_are_cropped(untrained):
    """Otherwise the second stage would learn that findings on which the readers disagree are no nodules."""
    scan = chest()
    low, high = untrained.candidates(scan).ends_lps_mm()
    excluded = tuple(
        Nodule(centre_lps_mm=tuple(centre), mean_diameter_mm=20.0, score=1.0, box_lps_mm=(0, 0, 0, 1, 1, 1))
        for centre in (low + high) / 2
    )
    annotated = AnnotatedScan(name="0", volume=scan, nodules=(), excluded=excluded)
    for seed in range(3):
        cropped = crop_ends(annotated, np.random.default_rng(seed))
        assert set(excluded) <= set(cropped.excluded)
    without = crop_ends(AnnotatedScan(name="0", volume=scan, nodules=()), np.random.default_rng(2))
    assert len(detector_marks(untrained, without, 1000, SIZE)[2]) > len(
        detector_marks(untrained, cropped, 1000, SIZE)[2]
    )


def test_only_marks_near_the_ends_of_a_cropped_scan_are_kept(untrained):
    scan = chest()
    whole = AnnotatedScan(name="0", volume=scan, nodules=())
    low, high = untrained.candidates(scan).ends_lps_mm()
    slices = scan.to_index_ijk((low + high) / 2)[:, 2]
    near = np.minimum(slices, scan.size_ijk[2] - 1 - slices) * scan.spacing_mm[2] <= 15.0
    assert 0 < near.sum() < len(near)
    assert len(detector_marks(untrained, whole, 1000, SIZE, max_end_distance_mm=15.0)[2]) == near.sum()
    nodule = Nodule(
        centre_lps_mm=tuple((low[0] + high[0]) / 2), mean_diameter_mm=8.0, score=1.0, box_lps_mm=(0, 0, 0, 1, 1, 1)
    )
    excluded = AnnotatedScan(name="0", volume=scan, nodules=(), excluded=(nodule,))
    away = np.linalg.norm((low + high) / 2 - nodule.centre_lps_mm, axis=1) - 4.0 > AMBIGUOUS_MM
    assert len(detector_marks(untrained, excluded, 1000, SIZE)[2]) == away.sum() < len(away)


@pytest.mark.usefixtures("empty_cache")
def test_marks_on_phantoms_are_packed_once_with_progress(untrained, monkeypatch, capsys):
    """The search takes an hour or two, which must not pass in silence."""
    monkeypatch.setattr(NodulePredictor, "load", lambda artifacts, device: untrained)
    monkeypatch.setattr(synthetic, "phantoms", lambda seed, count, nodules: annotated_chests(seed, count))
    monkeypatch.setattr(progress_bar, "FIRST_LINE_S", 0.0)
    data = HardCandidates(scans=1, validation_scans=1, per_scan=5, size=SIZE)
    pack = data.train(ChestInput())
    assert capsys.readouterr().err.startswith("searching phantoms: 1 of 1, ")
    (scan,) = annotated_chests(0, 1)
    padded = tuple(n + 2 * MAX_SHIFT for n in SIZE)
    patches, facts, labels = detector_marks(untrained, scan, 5, padded)
    assert 5 <= len(pack) <= 10 and pack.patches.shape == (len(pack), 2, *padded)
    assert np.array_equal(pack.patches[:5], patches) and np.array_equal(pack.facts[:5], facts)
    assert np.array_equal(pack.labels[:5], labels)
    assert len(data.train(ChestInput())) == len(pack) and not capsys.readouterr().err


def test_training_learns_a_visible_difference():
    """Bright marks are nodules: the loss falls, and the order becomes right."""
    random = np.random.default_rng(0)
    labels = (np.arange(48) % 3 == 0).astype(np.float32)
    around = tuple(n + 2 * MAX_SHIFT for n in SIZE)
    patches = random.integers(0, 60, size=(48, 2, *around)).astype(np.uint8)
    patches[labels > 0, 0, 8:12, 8:12, 5:7] += 150
    data = PackedCandidates(patches, np.zeros((48, 2), np.float32), labels)
    torch.manual_seed(0)
    network = CandidateClassifier(size=SIZE, channels=4).build(ChestInput())
    task, optimizer = CandidateTask().build(), torch.optim.AdamW(network.parameters(), 1e-2)
    before = None
    for _ in range(25):
        loss = task.loss(network, data.batch(np.arange(48), None))
        before = before or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scores = task.scores()
    task.evaluate(network.eval(), data.batch(np.arange(48), None), scores)
    assert loss.item() < 0.5 * before and scores.summary()["auc"] > 0.95


def test_patches_are_shifted_only_in_training():
    place = np.arange(SIZE[0] + 2 * MAX_SHIFT, dtype=np.uint8)[:, None, None]
    patches = np.broadcast_to(place, (1, 2, *(n + 2 * MAX_SHIFT for n in SIZE)))
    data = PackedCandidates(patches, np.zeros((1, 2), np.float32), np.zeros(1, np.float32))
    (still,) = data.batch([0], None)["image"]
    assert still.shape == (2, *SIZE)
    assert (255 * still[0, 0]).numpy() == pytest.approx(MAX_SHIFT) and (255 * still[0, -1]).numpy() == pytest.approx(17)
    middles = {round(float(data.batch([0], Key(seed=0, epoch=epoch))["image"].mean()), 4) for epoch in range(12)}
    assert len(middles) > 6


def test_the_area_under_the_curve_counts_ties_half():
    scores = CandidateScores([1.0, 0.0, 0.0, -1.0], [1.0, 1.0, 0.0, 0.0])
    assert scores.summary()["auc"] == pytest.approx(0.875)
    merged = CandidateScores()
    merged.merge(scores)
    assert merged.summary() == scores.summary()
    assert CandidateScores([1.0], [1.0]).summary()["auc"] == 0.5


def test_sizes_that_are_not_divisible_by_eight_are_rejected():
    with pytest.raises(InvalidInputError, match="multiples of 8"):
        CandidateClassifier(size=(32, 32, 12))


def test_a_second_stage_is_only_used_with_the_detector_it_was_trained_on(tmp_path):
    shipped_one = shipped(app)[0]
    digest = shipped_one.manifest.files["weights.safetensors"]["sha256"]
    torch.manual_seed(1)
    settings = CandidateClassifier(size=SIZE, channels=4)
    for name, detector in (("its", digest), ("another", "0" * 64)):
        folder = tmp_path / name / "1"
        folder.mkdir(parents=True)
        weights = {key: value.contiguous() for key, value in settings.build(ChestInput()).state_dict().items()}
        save_file(weights, folder / "weights.safetensors")
        recipe = {"app": "medical", "name": "candidates", "recipe": {"model": dataclasses.asdict(settings)}}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        manifest = json.loads((shipped_one.path / "manifest.json").read_text())
        manifest |= {"name": NAME, "data": {"synthetic": True, "description": "marks", "detector": detector}}
        manifest |= {"calibration": {"operating_score": 0.25}, "inputs": [], "outputs": []}
        manifest["files"] = {file: describe_file(folder / file) for file in ("weights.safetensors", "recipe.yaml")}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        predictor = NodulePredictor.load([shipped_one, open_artifact(folder)], "cpu")
        if name == "its":
            assert predictor.second_stage is not None and predictor.second_stage[1] == SIZE
            assert predictor.operating_score == 0.25 and NAME in predictor.programs
            by_itself = open_predictor(app, artifact=folder).predictor
            assert list(by_itself.programs) == ["lung_nodules", NAME] and by_itself.operating_score == 0.25
        else:
            assert predictor.second_stage is None and predictor.operating_score != 0.25
    alone = NodulePredictor.load([shipped_one], "cpu")
    assert alone.second_stage is None and NAME not in alone.programs
    answered = add_programs(Response(result={}), NodulePredictor.load(shipped(app), "cpu")).result
    assert answered["versions"] == {artifact.manifest.name: artifact.manifest.version for artifact in shipped(app)}
    with pytest.raises(InvalidInputError, match="name its artifact"):
        NodulePredictor.load([open_artifact(folder)], "cpu")


def test_a_detector_is_scored_with_the_second_stage_trained_on_its_marks(tmp_path):
    detector, second = shipped(app)
    assert [artifact.path for artifact in app.served_with(detector)] == [second.path]
    assert list(app.served_with(second)) == []
    folder = tmp_path / "lung_nodules" / "3"
    shutil.copytree(detector.path, folder)
    assert [artifact.path for artifact in app.served_with(open_artifact(folder))] == [second.path]
    with_other_weights(folder)
    assert list(app.served_with(open_artifact(folder))) == []


def with_other_weights(folder):
    """Changes the weights of a copied artifact, as further training would."""
    weights = {name: value + 1 for name, value in open_artifact(folder).weights().items()}
    save_file(weights, folder / "weights.safetensors")
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["files"]["weights.safetensors"] = describe_file(folder / "weights.safetensors")
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_second_stage_finds_the_detector_that_its_training_used(tmp_path):
    """A run is in no registry, and neither is its detector, which the recipe names."""
    own = tmp_path / "models" / "lung_nodules" / str(shipped(app)[0].manifest.version)
    shutil.copytree(shipped(app)[0].path, own)
    with_other_weights(own)
    second = tmp_path / "runs" / "second"
    shutil.copytree(shipped(app)[1].path, second)
    manifest = json.loads((second / "manifest.json").read_bytes())
    manifest["data"]["detector"] = weights_digest(open_artifact(own))
    (second / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InvalidInputError, match="neither in the same registry nor shipped"):
        NodulePredictor.load([open_artifact(second)], "cpu")
    recipe = yaml.safe_load((second / "recipe.yaml").read_text())
    recipe["recipe"]["data"]["detector"] = str(own)
    (second / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    manifest["files"]["recipe.yaml"] = describe_file(second / "recipe.yaml")
    (second / "manifest.json").write_text(json.dumps(manifest))
    predictor = NodulePredictor.load([open_artifact(second)], "cpu")
    assert predictor.second_stage is not None and predictor.digests["lung_nodules"] == weights_digest(
        open_artifact(own)
    )


def test_the_second_stage_is_calibrated_with_its_detector(tmp_path, capsys):
    (tmp_path / "marks.csv").write_text("scan,x,y,z,diameter_mm\n")
    data = ["--data", "marks", "--data.root", str(tmp_path), "--data.marks", "marks.csv"]
    words = ["--artifact", str(shipped(app)[1].path), "--registry", str(tmp_path / "models"), *data]
    assert cli.main(["calibrate", "medical", *words]) == 2
    assert "name the detector with --artifact" in capsys.readouterr().err
