"""The second stage: which points it gets, its training data, and that its boxes are the ones returned."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

import trivium
from apps.driving.app import app
from apps.driving.datasets.found_boxes import FoundBoxes, detector_of, fit_to_detector, match_objects, require_objects
from apps.driving.datasets.packing import CLASS
from apps.driving.datasets.synthetic import Synthetic
from apps.driving.inference.box_codes import box_features, decode_boxes, encode_boxes
from apps.driving.inference.calibration import score_second_stage
from apps.driving.inference.second_stage import SecondStage, points_around, sample_points
from apps.driving.models import SECOND_STAGE
from apps.driving.models.lidar_rcnn import LidarRCNN
from apps.driving.predictor import DrivingPredictor
from apps.driving.recipes import RECIPES
from apps.driving.service import DrivingCodec
from apps.driving.task import BoxScores, BoxTask
from apps.driving.types import KITTI_CLASSES, Boxes3D, BoxInput
from shared import cli
from shared.data.order import Key
from shared.deploy.artifact import Artifact, describe_file, open_artifact
from shared.deploy.predictor import Request, Response, add_programs
from shared.deploy.registry import Registry, shipped
from shared.errors import InvalidInputError

INPUT = BoxInput(points=8)


def boxes_of(rows: list[list[float]], scores: list[float], names: tuple[str, ...] | None = None) -> Boxes3D:
    array = np.array(rows, np.float32).reshape(-1, 7)
    return Boxes3D(
        centre_lidar_m=array[:, :3],
        size_m=array[:, 3:6],
        yaw=array[:, 6],
        names=names or ("car",) * len(array),
        scores=np.array(scores, np.float32),
    )


def some_boxes(number: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    place = draw.uniform((-30, -30, -2), (60, 30, 0), (number, 3))
    size = draw.uniform((0.5, 0.5, 1), (5, 2, 2), (number, 3))
    return np.concatenate([place, size, draw.uniform(-np.pi, np.pi, (number, 1))], axis=1).astype(np.float32)


def test_points_in_and_around_a_box_are_in_its_frame():
    draw = np.random.default_rng(1)
    boxes = some_boxes(40)
    points = draw.uniform((-40, -40, -4, 0), (70, 40, 3, 1), (60_000, 4)).astype(np.float32)
    about = points_around(boxes, points, INPUT)
    for (x, y, z, length, width, height, yaw), found in zip(boxes.astype(np.float64), about, strict=True):
        east, north, up = (points[:, :3] - (x, y, z)).T
        along, across = np.cos(yaw) * east + np.sin(yaw) * north, np.cos(yaw) * north - np.sin(yaw) * east
        inside = (np.abs(along) < length / 2 + 0.8) & (np.abs(across) < width / 2 + 0.8)
        inside &= (up > -height / 2 - 0.5) & (up < height / 2 + 0.8)
        expected = np.stack([along, across, up], axis=1)[inside]
        assert len(found) == len(expected) > 0
        assert np.sort(found, axis=0) == pytest.approx(np.sort(expected, axis=0), abs=1e-4)
    assert points_around(boxes[:0], points, INPUT) == []
    assert [len(points_of_box) for points_of_box in points_around(boxes, points[:0], INPUT)] == [0] * len(boxes)


def test_sampled_points_do_not_depend_on_the_order_of_the_sweep():
    draw = np.random.default_rng(2)
    points = draw.uniform(-1, 1, (100, 3)).astype(np.float32)
    chosen = sample_points(points, 8)
    assert np.array_equal(chosen, sample_points(points[draw.permutation(100)], 8))
    assert chosen[0, 0] == points[:, 0].min() and np.all(np.diff(chosen[:, 0]) > 0)
    # Rounded to 0.25 m, many points have the same x.
    coarse = np.round(points * 4) / 4
    assert np.array_equal(sample_points(coarse, 8), sample_points(coarse[draw.permutation(100)], 8))
    # If there are few points, each is sampled, and some repeatedly.
    few = sample_points(points[:3], 8)
    assert len(few) == 8 and len(np.unique(few, axis=0)) == 3


def test_corrections_take_a_box_to_the_object():
    boxes, objects = some_boxes(50), some_boxes(50, seed=3)
    objects[:, 3:6] = boxes[:, 3:6] * np.random.default_rng(4).uniform(0.6, 1.6, (50, 3))
    moved, about = encode_boxes(boxes, objects)
    found = np.concatenate([np.full((50, 1), 2.0), moved, np.where(about, 1.0, -1.0)[:, None]], 1).astype(np.float32)
    better, scores = decode_boxes(boxes, found)
    assert better[:, :6] == pytest.approx(objects[:, :6], abs=1e-3)
    assert np.cos(better[:, 6] - objects[:, 6]) == pytest.approx(1.0, abs=1e-5)
    assert np.abs(moved[:, 6]).max() <= np.pi / 2 and 0 < about.sum() < 50
    assert scores == pytest.approx(0.8808, abs=1e-4)
    # No side changes by more than a factor of two, whatever the network returns.
    found[:, 4:7] = 5.0
    assert decode_boxes(boxes, found)[0][:, 3:6] == pytest.approx(2.0138 * boxes[:, 3:6], rel=1e-3)


class Given(torch.nn.Module):
    """Moves each box by a metre along its heading, and reverses the order of the scores."""

    def forward(self, points: torch.Tensor, size: torch.Tensor, facts: torch.Tensor) -> torch.Tensor:
        assert points.shape[1:] == (8, 3) and size.shape[1:] == (3,) and len(points) <= 32
        found = torch.zeros(len(points), 9)
        found[:, 0], found[:, 1], found[:, 8] = -facts[:, 0], 1.0, -1.0
        return found


def test_the_published_box_is_the_corrected_one():
    rows = [[5.0 * n, 0, 0, 4, 2, 1.5, np.pi / 2] for n in range(40)]
    found = boxes_of(rows, np.linspace(0.9, 0.2, 40).tolist())
    points = np.concatenate([found.centre_lidar_m[:39], np.zeros((39, 1), np.float32)], axis=1)
    better = SecondStage(Given(), INPUT).refine(found, points)
    assert len(better) == 39, "the last box has no point"
    assert better.scores == pytest.approx(1 - found.scores[:39][::-1], abs=1e-5)
    assert better.centre_lidar_m[:, 0] == pytest.approx(found.centre_lidar_m[:39, 0][::-1], abs=1e-4)
    assert better.centre_lidar_m[:, 1] == pytest.approx(1.0, abs=1e-5)
    assert len(SecondStage(Given(), INPUT).refine(boxes_of([], []), points)) == 0
    assert len(SecondStage(Given(), INPUT).refine(found, points[:0])) == 0


def test_implausible_boxes_are_dropped():
    rows = [[5, 0, 0, 4, 2, 1.5, 0], [5, 0, 0, 1e6, 2, 1.5, 0], [np.nan, 0, 0, 4, 2, 1.5, 0], [1e7, 0, 0, 4, 2, 1.5, 0]]
    points = np.array([[5, 0, 0, 0], [1e7, 0, 0, 0]], np.float32)
    better = SecondStage(Given(), INPUT).refine(boxes_of(rows, [0.9, 0.8, 0.7, 0.6]), points)
    assert len(better) == 2 and better.size_m.max() == 4

    class Nothing(Given):
        def forward(self, points: torch.Tensor, size: torch.Tensor, facts: torch.Tensor) -> torch.Tensor:
            found = super().forward(points, size, facts)
            found[0, 3] = torch.nan
            return found

    assert len(SecondStage(Nothing(), INPUT).refine(boxes_of(rows, [0.9, 0.8, 0.7, 0.6]), points)) == 1
    low = np.full((1, 9), -800, np.float32)
    with np.errstate(all="raise"):
        assert decode_boxes(some_boxes(1), low)[1].tolist() == [0.0]


def test_box_features_do_not_depend_on_the_bearing():
    box = np.array([[10, 0, -1, 4, 2, 1.5, 0.3], [0, 10, -1, 4, 2, 1.5, 0.3 + np.pi / 2]], np.float32)
    facts = box_features(box, np.array([0.9, 0.9]), np.array([2, 2]), np.array([7, 7]), 3)
    assert facts[0] == pytest.approx(facts[1], abs=1e-5)
    assert facts[0, 0] == pytest.approx(np.log(9), abs=1e-4) and facts[0, 12:].tolist() == [0, 0, 1]
    assert np.isfinite(box_features(box, np.array([0.0, 1.0]), np.array([0, 1]), np.array([1, 1]), 3)).all()


def test_a_box_is_assigned_to_the_object_of_its_class_with_the_largest_overlap():
    boxes = np.array([[0, 0, 0, 4, 2, 1.5, 0], [20, 0, 0, 4, 2, 1.5, 0], [40, 0, 0, 4, 2, 1.5, 0]], np.float32)
    objects = np.array([[1, 0, 0.5, 4, 2, 1.5, 0], [3, 0, 0, 4, 2, 1.5, 0], [20, 0, 0, 8, 2.5, 3, 0]], np.float32)
    targets, overlaps, is_used = match_objects(boxes, np.array([2, 2, 2]), objects, np.array([2, 2, -1]))
    assert targets.tolist() == [objects[0].tolist(), boxes[1].tolist(), boxes[2].tolist()]
    assert overlaps[:, 0] == pytest.approx([0.6, 0, 0]) and overlaps[0, 1] == pytest.approx(6 / (24 - 6))
    assert is_used.tolist() == [True, False, True], "a truck is neither a car nor none"
    assert not match_objects(boxes, np.array([0, 0, 0]), objects[:2], np.array([2, 2]))[1].any(), (
        "another class is nothing"
    )
    assert match_objects(boxes, np.array([2, 2, 2]), objects[:0], np.array([], int))[2].all()


class Labels:
    """What a pack states about its objects."""

    def __init__(self, *names: str) -> None:
        self.names = tuple(sorted(set(names)))
        self._numbers = [self.names.index(name) for name in names]

    def __len__(self) -> int:
        return 1

    def table(self, index: int) -> np.ndarray:
        table = np.zeros((len(self._numbers), 15), np.float32)
        table[:, CLASS] = self._numbers
        return table


def test_labels_without_a_class_of_the_detector_are_refused_with_the_names_that_there_are():
    input = dataclasses.replace(INPUT, classes=KITTI_CLASSES)
    labels = Labels("regular_vehicle", "regular_vehicle", "pedestrian", "cyclist")
    with pytest.raises(InvalidInputError, match=r"no car; .*--data\.merge NAME car .*have regular_vehicle \(2\)"):
        require_objects(labels, input, {})
    require_objects(labels, input, {"regular_vehicle": "car"})


def test_an_all_round_sweep_is_judged_where_its_labels_are_asked_for(tmp_path, monkeypatch):
    """The detector also covers the area behind; the operating point is that of the objects in the range ahead."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = Synthetic(scenes=1, validation_scenes=1, field_of_view_deg=360.0)
    recipe = dataclasses.replace(RECIPES["second_stage"](), data=data, input=fit_to_detector(BoxInput()))
    torch.manual_seed(0)
    scores, number = score_second_stage(recipe, recipe.input, recipe.model.build(recipe.input))
    ((found, confidence, _, objects, _),) = scores.frames.values()
    assert number == 1 and len(found) == len(confidence) > 5 and len(objects) > 0
    assert found[:, 0].min() >= 0 and objects[:, 0].min() >= 0


def packed(number: int, draw: np.random.Generator) -> FoundBoxes:
    """Boxes near objects, each with one point on the object's centre."""
    data = FoundBoxes.__new__(FoundBoxes)
    data.input = dataclasses.replace(INPUT, classes=KITTI_CLASSES)
    boxes = some_boxes(number)
    objects = boxes.copy()
    objects[:, :3] += draw.normal(0, 0.3, (number, 3))
    objects[:, 6] += draw.normal(0, 0.2, number) + np.where(draw.random(number) < 0.3, np.pi, 0)
    centre = encode_boxes(boxes, objects)[0][:, None, :3]
    data.points = np.repeat(centre, 256, axis=1).astype(np.float16)
    data.counts = draw.integers(1, 400, number)
    data.boxes, data.objects = boxes, objects
    data.scores, data.labels = draw.uniform(0, 1, number).astype(np.float32), draw.integers(0, 3, number)
    data.overlaps = np.stack([np.full(number, 0.5), np.linspace(0, 0.7, number)], 1).astype(np.float32)
    return data


def test_a_box_is_varied_together_with_its_points_and_its_object():
    data = packed(200, np.random.default_rng(5))
    still = data.batch(np.arange(200), None)
    assert still["points"][:, 0].numpy() == pytest.approx(still["box_target"][:, :3].numpy(), abs=2e-3)
    varied = data.batch(np.arange(200), Key(seed=1, epoch=0))
    reversed_batch = data.batch(np.arange(200)[::-1].copy(), Key(seed=1, epoch=0))
    assert torch.equal(varied["points"], reversed_batch["points"].flip(0)), "a function of seed, epoch and index"
    assert varied["points"][:, 0].numpy() == pytest.approx(varied["box_target"][:, :3].numpy(), abs=2e-3)
    moved = (varied["box_target"] - still["box_target"]).abs()[:, :3].mean(dim=0)
    assert (moved > 0.02).all() and (moved < 0.5).all()
    turned = (varied["flipped"] != still["flipped"]).float().mean()
    assert 0.02 < turned < 0.25
    assert still["score_target"].tolist() == pytest.approx(np.clip((data.overlaps[:, 1] - 0.1) / 0.5, 0, 1).tolist())
    assert varied["known"].shape == (200, 15) and torch.isfinite(varied["known"]).all()


def test_what_can_be_seen_is_learnt():
    """The point shows where the object is: boxes move closer to it, and the score separates good from bad boxes."""
    draw = np.random.default_rng(6)
    data = packed(256, draw)
    good = draw.random(256) < 0.5
    data.overlaps = np.repeat(np.where(good, np.float32(0.7), np.float32(0))[:, None], 2, axis=1)
    data.points[~good, :, 2] += 1
    torch.manual_seed(0)
    network = LidarRCNN(widths=(32, 64), hidden=32).build(data.input)
    task, optimizer = BoxTask().build(), torch.optim.AdamW(network.parameters(), 5e-3)
    for epoch in range(120):
        loss = task.loss(network, data.batch(np.arange(256), Key(seed=0, epoch=epoch)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scores = task.scores()
    task.evaluate(network.eval(), data.batch(np.arange(256), None), scores)
    summary = scores.summary()
    assert summary["ap"] > 0.95
    assert summary["centre_m"] < 0.5 * summary["centre_before_m"]
    merged = BoxScores()
    merged.merge(scores)
    assert merged.summary() == pytest.approx(summary)
    assert BoxScores().summary() == {"loss": 0.0, "ap": 0.0, "centre_m": 0.0, "centre_before_m": 0.0}


def test_impossible_settings_are_refused(tmp_path):
    for wrong in ({"points": 0}, {"points": 1}, {"points": 257}, {"around_m": float("nan")}, {"above_m": -1.0}):
        with pytest.raises(InvalidInputError, match=r"expected 2 to 256 points, and margins of 0 to 100 m"):
            BoxInput(**wrong)
    with pytest.raises(InvalidInputError, match="classes does not apply to a second stage"):
        Synthetic(classes=("car",)).fit_input(BoxInput())
    with pytest.raises(InvalidInputError, match=r"model\.widths"):
        LidarRCNN(widths=())
    camera = next(artifact for artifact in shipped(app) if artifact.manifest.name == "fcos3d")
    with pytest.raises(InvalidInputError, match=r"give the artifact of such a model with --input\.detector"):
        fit_to_detector(BoxInput(detector=camera.path))


def test_the_input_takes_range_and_classes_of_the_detector():
    detector = shipped(app)[0]
    input = fit_to_detector(BoxInput())
    assert input.weights == detector.manifest.files["weights.safetensors"]["sha256"]
    assert input.range_m == (0.0, -39.68, -4.0, 69.12, 39.68, 2.0) and input.own_vehicle_m == (2.6, 1.1)
    assert [kind.name for kind in input.classes] == ["pedestrian", "cyclist", "car"]


def second_stage(folder: Path, detector: Artifact, weights: str) -> Artifact:
    """A second stage with random weights whose record names the network with those weights as its detector."""
    recipe = RECIPES["second_stage"]()
    input = dataclasses.replace(fit_to_detector(BoxInput(points=16)), weights=weights)
    torch.manual_seed(1)
    network = LidarRCNN(widths=(8,), hidden=8).build(input)
    folder.mkdir(parents=True)
    save_file(
        {name: value.contiguous() for name, value in network.state_dict().items()}, folder / "weights.safetensors"
    )
    settings = {"model": {"name": "lidar_rcnn", "widths": [8], "hidden": 8}, "input": dataclasses.asdict(input)}
    settings["input"] |= {"classes": [dataclasses.asdict(kind) for kind in input.classes]}
    text = json.loads(json.dumps({"app": "driving", "name": "second_stage", "recipe": settings}))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(text))
    manifest = json.loads((detector.path / "manifest.json").read_text())
    manifest |= {"name": SECOND_STAGE, "version": int(folder.name), "inputs": [], "outputs": [], "programs": {}}
    manifest |= {"data": recipe.data.fingerprint(), "calibration": {"least_scores": {"car": 0.625}}}
    manifest["files"] = {file: describe_file(folder / file) for file in ("weights.safetensors", "recipe.yaml")}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return open_artifact(folder)


def test_a_second_stage_serves_only_the_detector_it_was_trained_with(tmp_path):
    detector = shipped(app)[0]
    digest = detector.manifest.files["weights.safetensors"]["sha256"]
    its = second_stage(tmp_path / "its" / SECOND_STAGE / "1", detector, digest)
    another = second_stage(tmp_path / "another" / SECOND_STAGE / "1", detector, "0" * 64)
    for loaded in ([detector], [detector, another]):
        alone = DrivingPredictor.load(loaded, "cpu")
        assert alone.second_stages == {} and sorted(alone.digests) == ["pointpillars"]
    for artifacts in ([detector, its], [its]):
        predictor = DrivingPredictor.load(artifacts, "cpu")
        assert list(predictor.detectors) == ["pointpillars"]
        assert predictor.detectors["pointpillars"].second_stage is not None
        assert predictor.least_scores["pointpillars"] == {"car": 0.625}
        # Answers to a folder of frames are kept apart by them.
        assert sorted(predictor.digests) == [SECOND_STAGE, "pointpillars"]
        programs = add_programs(Response(result={}, models=("pointpillars",)), predictor).result["programs"]
        assert sorted(programs) == [SECOND_STAGE, "pointpillars"]
        likely = DrivingCodec(predictor).likely_models(Request(files=(Path("sweep.bin"),)))
        assert likely == ["pointpillars", SECOND_STAGE]
    with pytest.raises(InvalidInputError, match="corrects the boxes of other weights than those in"):
        DrivingPredictor.load([another], "cpu")


def test_what_is_loaded_is_named_by_its_detector_first():
    first, second = (f"{artifact.manifest.name} version {artifact.manifest.version}" for artifact in shipped(app)[::2])
    for artifact in (shipped(app)[0], shipped(app)[2]):
        assert repr(trivium.load(app, artifact=artifact.path)) == f"LoadedModel(driving: {first}, {second})"


def test_a_registry_may_hold_second_stages_of_several_detectors(tmp_path):
    detector = shipped(app)[0]
    digest = detector.manifest.files["weights.safetensors"]["sha256"]
    shutil.copytree(detector.path, tmp_path / "pointpillars" / "3")
    own = open_artifact(tmp_path / "pointpillars" / "3")
    assert [artifact.path for artifact in app.served_with(own)] == [shipped(app)[2].path]
    second_stage(tmp_path / "of_another" / SECOND_STAGE / "1", detector, "0" * 64)
    assert Registry(tmp_path / "of_another", app.weights).serving(app)[2].path == shipped(app)[2].path
    its = second_stage(tmp_path / SECOND_STAGE / "1", detector, digest)
    second_stage(tmp_path / SECOND_STAGE / "2", detector, "0" * 64)
    assert [artifact.path for artifact in app.served_with(own)] == [its.path]
    served = DrivingPredictor.load(Registry(tmp_path, app.weights).serving(app), "cpu")
    assert served.least_scores["pointpillars"] == {"car": 0.625}, "its own, though another detector's is newer"
    # Calibration searches the registry that it writes to before the shipped artifacts.
    assert [artifact.path for artifact in app.served_with(detector, tmp_path)] == [its.path]
    assert list(app.served_with(its)) == [] and list(app.served_with(shipped(app)[1])) == []


def test_boxes_of_other_weights_are_not_taken_for_the_detectors(tmp_path):
    input = dataclasses.replace(fit_to_detector(BoxInput()), weights="f" * 64)
    with pytest.raises(InvalidInputError, match="other weights than those in"):
        detector_of(input)
    shutil.copytree(shipped(app)[0].path, tmp_path / "3")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert fit_to_detector(BoxInput(detector=Path("3"))).detector == tmp_path / "3", "wherever it is read again"


@pytest.mark.realdata
def test_the_shipped_detector_is_calibrated_together_with_its_second_stage(tmp_path, data_root):
    root = data_root / "driving" / "kitti_object"
    words = ["calibrate", "driving", "--registry", str(tmp_path), "--data", "kitti", "--data.root", str(root)]
    assert cli.main(words) == 0
    registry = Registry(tmp_path, app.weights)
    written = registry.newest(SECOND_STAGE).manifest
    assert written.training["calibrated_on"]["synthetic"] is False and not (tmp_path / "pointpillars").exists()
    served = DrivingPredictor.load(registry.serving(app), "cpu")
    assert served.least_scores["pointpillars"] == written.calibration["least_scores"]
    assert served.least_scores["pointpillars"]["car"] != shipped(app)[2].manifest.calibration["least_scores"]["car"]
