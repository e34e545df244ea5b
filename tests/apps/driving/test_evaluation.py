"""Scoring by the field's protocols on the user's data, calibrating thresholds on it, and training on it."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from apps.driving.app import app
from apps.driving.datasets.argoverse2 import Argoverse2
from apps.driving.datasets.custom import Custom
from apps.driving.datasets.kitti import Kitti
from apps.driving.datasets.nuscenes import NuScenes
from apps.driving.datasets.synth.export import write_frame
from apps.driving.datasets.synth.scenes import scene
from apps.driving.datasets.synth.sensors import Sensors
from apps.driving.datasets.synthetic import Synthetic
from apps.driving.inference.evaluation import evaluate, score
from apps.driving.predictor import DrivingPredictor
from apps.driving.recipes import RECIPES
from apps.driving.types import Boxes3D, CameraInput, LidarInput
from shared.deploy.artifact import load_weights
from shared.deploy.opening import open_predictor
from shared.deploy.registry import shipped
from shared.engine.loop import fit
from shared.engine.run import Run
from shared.errors import InvalidInputError
from shared.recipe import resolve

pytestmark = pytest.mark.usefixtures("empty_cache")


class Told:
    """A detector that returns the ground truth, changed as a test requires."""

    sensor = "lidar"
    program = None

    def __init__(self, answers, input=None):
        self.answers, self.input = answers, input or LidarInput()

    def detect(self, frame):
        return self.answers(frame)


def perfect(frame):
    truth = frame.truth
    return Boxes3D(
        centre_lidar_m=truth.centre_lidar_m,
        size_m=truth.size_m,
        yaw=truth.yaw,
        names=truth.names,
        scores=np.linspace(0.9, 0.5, len(truth), dtype=np.float32),
    )


def predictor_of(detector):
    return DrivingPredictor(detectors={"told": detector}, least_scores={})


def cells(table, **wanted):
    """The cells, by column, of the row whose first columns match."""
    for row in table.rows:
        cells_by_column = dict(zip(table.columns, row, strict=True))
        if all(cells_by_column[column.replace("_", "")] == value for column, value in wanted.items()):
            return cells_by_column
    raise AssertionError(f"no row {wanted} in {table.rows}")


@pytest.fixture(scope="module")
def kitti_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("kitti")
    for number in range(5):
        frame = scene(np.random.default_rng(number), sensors=Sensors(image_scale=1.0), kind="street")
        write_frame(frame, root / "training", f"{number:06d}")
    (root / "ImageSets").mkdir()
    (root / "ImageSets" / "train.txt").write_text("000000\n")
    (root / "ImageSets" / "val.txt").write_text("".join(f"{n:06d}\n" for n in range(5)))
    return root


def test_kitti_without_images_is_scored_by_centre_distance_with_a_note(kitti_root, tmp_path):
    root = shutil.copytree(kitti_root, tmp_path / "kitti")
    (root / "training" / "image_2" / "000003.png").unlink()
    data = Kitti(root=root, merge=())
    table = evaluate(predictor_of(Told(perfect)), data)
    assert table.title.startswith("AP by centre distance") and float(cells(table, **{"class": "car"})["AP"]) > 0.9
    (note,) = (text for text in table.notes if "image_2" in text)
    assert note.startswith("told: 1 of 5 frames have no image in image_2, whose size KITTI's protocol needs, so all")
    (found,) = score(predictor_of(Told(perfect)), data)
    assert found.name == "told: mean AP by centre distance" and found.value > 0.9


def test_kitti_is_scored_by_ap_r40_with_its_counts(kitti_root):
    table = evaluate(predictor_of(Told(perfect)), Kitti(root=kitti_root))
    counted = cells(table, **{"class": "car", "_": "objects"})
    objects, found = int(counted["hard"]), float(cells(table, **{"class": "car", "_": "3D"})["hard"])
    assert objects > 3
    assert found == pytest.approx(100 * min(objects - 1, 40) / 40 if objects < 41 else 100.0, abs=0.01)
    missed = evaluate(
        predictor_of(Told(lambda frame: perfect(frame).take(np.zeros(0, np.int64)))), Kitti(root=kitti_root)
    )
    assert cells(missed, **{"class": "car", "_": "3D"})["hard"] == "0.00"
    few = evaluate(predictor_of(Told(perfect)), Kitti(root=kitti_root), 2)
    assert "2 frames" in few.notes[0] and "5 frames" in table.notes[0]


def test_a_model_has_the_same_score_on_custom_sweeps_and_on_kitti(kitti_root, tmp_path):
    (tmp_path / "points").mkdir()
    (tmp_path / "labels").mkdir()
    for number in range(2):
        frame = scene(np.random.default_rng(number), kind="street")
        frame.points_lidar_m.tofile(tmp_path / "points" / f"{number}.bin")
        rows = [
            " ".join([*(f"{value:.4f}" for value in box), {"car": "saloon"}.get(name, name)])
            for box, name in zip(frame.truth.array, frame.truth.names, strict=True)
        ]
        (tmp_path / "labels" / f"{number}.txt").write_text("\n".join(rows))
    data = Custom(root=tmp_path, merge=(("saloon", "car"),))

    def as_cars(frame):
        found = perfect(frame)
        return dataclasses.replace(found, names=tuple({"saloon": "car"}.get(name, name) for name in found.names))

    (own,) = score(predictor_of(Told(as_cars)), data)
    assert own.name == "told: mean AP by centre distance" and own.value > 0.99
    assert int(own.count.partition(" ")[0]) > 3 and own.count.endswith("objects in 1 frames")
    (none,) = score(predictor_of(Told(lambda frame: as_cars(frame).take(np.zeros(0, np.int64)))), data)
    assert none.value == 0
    (kitti,) = score(predictor_of(Told(perfect)), Kitti(root=kitti_root))
    assert kitti.name == "told: mean AP R40, 3D, moderate" and kitti.value > 10
    tram = LidarInput(classes=(dataclasses.replace(LidarInput().classes[0], name="tram"),))
    for labelled in (data, Kitti(root=kitti_root)):
        with pytest.raises(InvalidInputError, match=r"none of the classes of told \(tram\) is labelled"):
            score(predictor_of(Told(perfect, tram)), labelled)


@pytest.mark.realdata
def test_nuscenes_is_scored_by_centre_distance(data_root):
    data = NuScenes(root=data_root / "driving" / "nuscenes_sample")
    fitted = data.fit_input(LidarInput(range_m=(-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)))
    table = evaluate(predictor_of(Told(perfect, fitted)), data)
    barrier = cells(table, **{"class": "barrier"})
    assert float(barrier["AP"]) > 0.99 and float(barrier["ATE (m)"]) == 0 and int(barrier["objects"]) > 5

    def aside(frame):
        boxes = perfect(frame)
        return dataclasses.replace(boxes, centre_lidar_m=boxes.centre_lidar_m + np.float32([0.7, 0, 0]))

    moved = cells(evaluate(predictor_of(Told(aside, fitted)), data), **{"class": "truck"})
    assert (moved["AP 0.5 m"], float(moved["AP 1 m"]) > 0.9) == ("0.000", True)
    assert float(moved["ATE (m)"]) == pytest.approx(0.7, abs=0.01)


@pytest.mark.realdata
def test_frames_without_a_usable_sensor_are_refused_and_objects_out_of_range_are_reported(data_root):
    log = data_root / "driving" / "av2_7fab2350"
    data = Argoverse2(root=log, stride=1, merge=(("regular_vehicle", "car"),))
    table = evaluate(predictor_of(Told(perfect)), data)
    assert any("lie outside the range that it was trained on" in note for note in table.notes)
    seeing = Told(perfect, CameraInput())
    seeing.sensor = "camera"
    with pytest.raises(InvalidInputError, match="no validation frame has images"):
        evaluate(predictor_of(seeing), data)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "recipe_name"),
    [
        ("kitti", "tiny"),
        ("kitti", "fcos3d_tiny"),
        ("nuscenes", "tiny"),
        ("nuscenes", "fcos3d_tiny"),
        ("argoverse2", "tiny"),
    ],
)
def test_a_network_is_trained_and_scored_on_real_frames(data_root, tmp_path, name, recipe_name):
    """A few steps through the full pipeline: data set, input with its classes, run, artifact, protocol."""
    folder = {"kitti": "kitti_object", "nuscenes": "nuscenes_sample", "argoverse2": "av2_7fab2350"}[name]
    data = {"kitti": Kitti, "nuscenes": NuScenes, "argoverse2": Argoverse2}[name](root=data_root / "driving" / folder)
    base = RECIPES[recipe_name]()
    limits = dataclasses.replace(base.limits, steps=3, epochs=3, batch=1)
    run = Run(tmp_path / "run", "driving", recipe_name)
    result = fit(dataclasses.replace(base, data=data, limits=limits), run, quiet=True)
    assert result.steps == 3 and np.isfinite(list(result.scores.values())).all()
    opened = open_predictor(app, run=run.path, device="cpu")
    (detector,) = opened.predictor.detectors.values()
    assert detector.input == resolve(dataclasses.replace(base, data=data)).input
    table = evaluate(opened.predictor, data, 1)
    assert any("1 frames" in note for note in table.notes) and table.title.startswith("AP")


@pytest.mark.realdata
def test_fine_tuning_the_shipped_pointpillars_lowers_its_loss_on_the_real_frames(data_root, tmp_path):
    """On all five frames, unchanged: 20 training steps on four of them, at the learning rate given in
    docs/driving.md."""
    artifact = shipped(app)[0]
    medium = RECIPES["medium"]()
    base = dataclasses.replace(
        medium,
        ema_decay=None,
        schedule=dataclasses.replace(medium.schedule, warmup_steps=2),
        optimizer=dataclasses.replace(medium.optimizer, learning_rate=3e-4),
    )
    root = tmp_path / "kitti"
    root.mkdir()
    (root / "training").symlink_to(data_root / "driving" / "kitti_object")
    (root / "ImageSets").mkdir()
    for part in ("train", "val"):
        (root / "ImageSets" / f"{part}.txt").write_text("".join(f"{n:06d}\n" for n in range(5 if part == "val" else 4)))
    data = Kitti(root=root)
    recipe = dataclasses.replace(
        base, data=data, init=artifact.path, limits=dataclasses.replace(base.limits, steps=20, validate_every=20)
    )
    before = load_weights(base.model.build(base.input), artifact, "cpu")
    loss = losses_of(recipe, before)
    run = Run(tmp_path / "run", "driving", "medium")
    result = fit(recipe, run, quiet=True)
    assert result.steps == 20
    assert result.history[-1]["loss"] < 0.9 * loss


def losses_of(recipe, model):
    """The loss on the validation split, as training computes it."""
    task, dataset = recipe.task.build(), recipe.data.validation(recipe.input)
    scores = task.scores()
    with torch.inference_mode():
        for number in range(len(dataset)):
            task.evaluate(model.eval(), dataset.batch(np.array([number]), None), scores)
    return scores.summary()["loss"]


def test_thresholds_are_calibrated_on_the_users_data(kitti_root):
    base = RECIPES["tiny"]()
    torch.manual_seed(0)
    model = base.model.build(base.input).eval()
    found = app.calibrate(dataclasses.replace(base, data=Kitti(root=kitti_root)), model)
    assert found["least_scores"].keys() == {"pedestrian", "cyclist", "car"}
    assert (found["scenes"], found["synthetic"]) == (5, False)
    assert "car" not in found["classes_without_objects"]
    assert app.calibrate(dataclasses.replace(base, data=Synthetic(scenes=2, validation_scenes=2)), model)["synthetic"]
