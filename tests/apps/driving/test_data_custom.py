"""Custom sweeps in the layout of OpenPCDet and mmdet3d: reading, training and detection."""

import json

import numpy as np
import pytest

from apps.driving.adapters import custom
from apps.driving.adapters.registry import read_frames
from apps.driving.datasets.custom import Custom
from apps.driving.datasets.synth.scenes import scene
from apps.driving.datasets.synth.sensors import Sensors
from apps.driving.recipes import RECIPES
from apps.driving.types import CameraInput
from shared import cli
from shared.errors import InvalidInputError
from tests.apps.driving.pcd_files import pcd

pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture(scope="module")
def frames():
    sensors = Sensors(field_of_view_deg=90.0, azimuth_step_deg=0.5)
    return [scene(np.random.default_rng(number), sensors=sensors, kind="street") for number in range(6)]


@pytest.fixture
def root(frames, tmp_path):
    """Six synthetic frames: sweeps in each of the formats, cars called Vehicle."""
    for folder in ("points", "labels"):
        (tmp_path / "own" / folder).mkdir(parents=True)
    for number, frame in enumerate(frames):
        sweep = tmp_path / "own" / "points" / f"drive-{number}"
        if number % 3 == 0:
            np.save(sweep.with_suffix(".npy"), frame.points_lidar_m)
        elif number % 3 == 1:
            sweep.with_suffix(".pcd").write_bytes(pcd(frame.points_lidar_m, "binary_compressed"))
        else:
            frame.points_lidar_m.astype("<f4").tofile(sweep.with_suffix(".bin"))
        class_names = {"car": "Vehicle", "van": "Vehicle"}
        rows = [
            " ".join(f"{value:.5f}" for value in box) + f" {class_names.get(name, name.capitalize())}"
            for box, name in zip(frame.truth.array, frame.truth.names, strict=True)
        ]
        (tmp_path / "own" / "labels" / f"drive-{number}.txt").write_text("\n".join(rows) + "\n")
    return tmp_path / "own"


def test_sweeps_and_boxes_read_back_as_written(root, frames):
    for handed in (root, root.parent):
        read = read_frames([handed])
        assert [frame.name for frame in read] == [f"drive-{n}" for n in range(6)]
        for found, expected in zip(read, frames, strict=True):
            assert found.points_lidar_m == pytest.approx(expected.points_lidar_m, abs=1e-5)
            assert found.truth.array == pytest.approx(expected.truth.array, abs=1e-4)
            assert set(found.truth.names) <= {"vehicle", "truck", "pedestrian", "cyclist"}
            assert found.truth.point_counts.sum() > 0


def test_label_z_may_be_that_of_the_bottom_face(root, frames):
    data = Custom(root=root, box_origin="bottom")
    found = data.frames("train").read(0).truth
    raised = found.centre_lidar_m[:, 2] - frames[0].truth.centre_lidar_m[:, 2]
    assert raised == pytest.approx(frames[0].truth.size_m[:, 2] / 2, abs=1e-3)


def test_splits_come_from_image_sets_or_every_fifth_frame(root):
    assert Custom(root=root).frames("validation").ids == ("drive-4",)
    (root / "ImageSets").mkdir()
    (root / "ImageSets" / "train.txt").write_text("drive-0\ndrive-5\n")
    (root / "ImageSets" / "val.txt").write_text("drive-3\n")
    data = Custom(root=root)
    assert data.frames("train").ids == ("drive-0", "drive-5") and data.frames("validation").ids == ("drive-3",)
    (root / "ImageSets" / "train.txt").unlink()
    assert data.frames("train").ids == tuple(f"drive-{n}" for n in (0, 1, 2, 4, 5))
    for text, message in (("drive-3\ndrive-9\n", r"val\.txt lists drive-9, which is not in points"), ("", "is empty")):
        (root / "ImageSets" / "val.txt").write_text(text)
        with pytest.raises(InvalidInputError, match=message):
            data.frames("train")


def test_sweeps_that_would_be_ignored_are_refused(root):
    (root / "points" / "._drive-0.npy").write_bytes(b"macOS keeps its own here")
    assert len(custom.frame_ids(root)) == 6
    for name, message in (
        ("drive-1.bin", "two files could be the sweep drive-1"),
        ("x.ply", r"x\.ply: PLY is not supported"),
    ):
        (root / "points" / name).write_bytes(b"0" * 16)
        for read in (lambda: read_frames([root]), lambda: Custom(root=root).frames("train")):
            with pytest.raises(InvalidInputError, match=message):
                read()
        (root / "points" / name).unlink()
    (root / "points" / "day 2").mkdir()
    np.save(root / "points" / "day 2" / "x.npy", np.ones((5, 4), np.float32))
    with pytest.raises(InvalidInputError, match="points has the subfolder day 2 with sweeps"):
        custom.frame_ids(root)


def test_all_label_classes_are_trained_unless_some_are_named(root):
    recipe = RECIPES["tiny"]()
    every = Custom(root=root).fit_input(recipe.input)
    names = [kind.name for kind in every.classes]
    known = [name for name in ("pedestrian", "cyclist", "car") if name in names]
    assert names == [*known, *sorted(set(names) - set(known))] and names[-1] == "vehicle"
    (vehicle,) = (kind for kind in every.classes if kind.name == "vehicle")
    assert 3 < vehicle.size_m[0] < 6 and -2.2 < vehicle.bottom_m < -1.2
    chosen = Custom(root=root, classes=("vehicle",)).fit_input(recipe.input)
    assert [kind.name for kind in chosen.classes] == ["vehicle"]
    as_cars = Custom(root=root, classes=("Car",), merge=(("Vehicle", "car"),)).fit_input(recipe.input)
    assert as_cars.classes == tuple(kind for kind in recipe.input.classes if kind.name == "car")
    with pytest.raises(
        InvalidInputError, match=r"data\.merge names vehicel, but no label has this class; the labels have "
    ):
        Custom(root=root, merge=(("vehicel", "car"),)).fit_input(recipe.input)
    with pytest.raises(InvalidInputError, match="custom data has sweeps but no images"):
        Custom(root=root).frames("train", CameraInput(image=(96, 320), focal_px=180.0))


def test_an_invalid_label_is_refused_with_its_line(root):
    file = root / "labels" / "drive-0.txt"
    for text, message in (
        ("1 2 3 4 5 6 Car", r"drive-0\.txt, line 1: 7 columns; expected x, y, z, length"),
        ("1 2 3 4 2 1.5 0 Car\n1 2 3 4 0 1.5 0 Car", r"line 2: the size of Car is not positive"),
        ("\n\n1 2 3 4 2 1.5 -90 Car", "line 3: yaw is -90; expected radians, not degrees"),
        ("Car 0 0 0 1 2 3 4 1 2 3 4 5 6 7", "15 columns; .* these are KITTI labels, which belong in label_2"),
        ("1 2 3 4 2 1.5 north Car", r"line 1: could not convert string to float: 'north'"),
        ("1 2 nan 4 2 1.5 0 Car", "numbers that are not finite"),
        ("1 2 3 4200 1800 1500 0 Car", "line 1: a Car of 4200 x 1800 x 1500 metres; labels must be in metres"),
        ("1 2 3 60 60 175 0 Person", "a Person of 60 x 60 x 175 metres; .* are these millimetres or centimetres"),
        ("15000 2000 -500 4.2 1.8 1.5 0 Car", r"a Car at \(15000, 2000, -500\) metres; labels must be in metres from"),
    ):
        file.write_text(text)
        with pytest.raises(InvalidInputError, match=message):
            custom.read_frame(root, "drive-0")
    file.write_text("\n")
    assert len(custom.read_frame(root, "drive-0").truth) == 0
    file.unlink()
    assert custom.read_frame(root, "drive-0").truth is None
    with pytest.raises(InvalidInputError, match="add an empty file if it has no objects"):
        Custom(root=root).frames("train").read(0)


def test_a_network_is_trained_scored_and_run_on_custom_sweeps(root, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    data = ["--data", "custom", "--data.root", str(root)]
    settings = ["--data.classes", "vehicle", "--limits.epochs", "1"]
    assert cli.main(["train", "driving", "--recipe", "tiny", *data, *settings, "--out", str(run)]) == 0
    assert cli.main(["evaluate", "driving", "--run", str(run), *data, "--data.classes", "vehicle"]) == 0
    assert "vehicle" in capsys.readouterr().out
    assert cli.main(["export", str(run), "--registry", str(tmp_path / "models")]) == 0
    trained = str(tmp_path / "models" / "pointpillars" / "1")
    command = ["predict", "driving", str(root), "--each", "--artifact", trained, "--out", str(out)]
    assert cli.main(command) == 0
    lines = [json.loads(line) for line in (out / "frames.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == [f"drive-{n}" for n in range(6)]
