"""Cityscapes 3D: labels become boxes, and images are read with the label file beside them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from apps.driving.adapters.projection import image_boxes
from apps.driving.adapters.registry import read_frames
from apps.driving.datasets.cityscapes3d import Cityscapes3D
from apps.driving.datasets.synth.scenes import scene
from apps.driving.datasets.synth.sensors import Sensors
from apps.driving.types import CameraInput, LidarInput
from shared.errors import InvalidInputError

ALL_ROUND = LidarInput(range_m=(-51.2, -51.2, -5.0, 51.2, 51.2, 3.0))
HALF_SIZE = CameraInput(image=(192, 640), focal_px=360.77)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def test_cityscapes_labels_project_to_the_boxes_that_they_state(tmp_path):
    """A synthetic scene as a label file: its 3D boxes project to the 2D boxes written from the projection."""
    frame = scene(np.random.default_rng(5), sensors=Sensors(image_scale=0.5, azimuth_step_deg=1.0), kind="street")
    write_city(frame, tmp_path, "aachen_000000_000019")
    read = Cityscapes3D(root=tmp_path).frames("train").read(0)
    assert read.points_lidar_m is None and read.truth.names[0] == frame.truth.names[0]
    assert read.truth.array == pytest.approx(frame.truth.array, abs=1e-4)
    camera = read.cameras["leftImg8bit"]
    assert camera.lidar_to_camera == pytest.approx(frame.cameras["image_2"].lidar_to_camera, abs=1e-5)
    assert np.array_equal(camera.image_HWC, frame.cameras["image_2"].image_HWC)
    shown, _ = image_boxes(read.truth, camera.intrinsics, camera.lidar_to_camera, camera.image_HWC.shape[:2])
    known = ~np.isnan(frame.truth.box_2d).any(1)
    assert read.truth.box_2d[known] == pytest.approx(shown[known], abs=0.5)
    with pytest.raises(InvalidInputError, match="has no LiDAR; choose a camera network"):
        Cityscapes3D(root=tmp_path).train(LidarInput())
    batch = Cityscapes3D(root=tmp_path, classes=("car",)).train(HALF_SIZE).batch(np.array([0]), None)
    assert batch["images"].shape[1] == 3 and len(batch["labels"]) == 1


def write_city(frame, root, name):
    """One image with its label file in Cityscapes 3D's layout."""
    from PIL import Image

    camera, truth = frame.cameras["image_2"], frame.truth
    optical = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], np.float64)
    to_sensor = np.linalg.inv(optical) @ camera.lidar_to_camera
    boxes_2d = np.nan_to_num(truth.box_2d)
    objects = [
        {
            "label": truth.names[i],
            "3d": {
                "center": truth.centre_lidar_m[i].tolist(), "dimensions": truth.size_m[i].tolist(),
                "rotation": [float(np.cos(truth.yaw[i] / 2)), 0.0, 0.0, float(np.sin(truth.yaw[i] / 2))],
            },
            "2d": {"amodal": [*boxes_2d[i, :2].tolist(), *(boxes_2d[i, 2:] - boxes_2d[i, :2]).tolist()]},
            "occlusion": 0.0, "truncation": float(truth.truncation[i]),
        }
        for i in range(len(truth))
    ]  # fmt: skip
    height, width = camera.image_HWC.shape[:2]
    focal, centre = camera.intrinsics[[0, 1], [0, 1]], camera.intrinsics[:2, 2]
    content = {
        "imgHeight": height, "imgWidth": width, "objects": objects, "ignore": [{"2d": [1, 2, 3, 4], "label": "car"}],
        "sensor": {
            "fx": float(focal[0]), "fy": float(focal[1]), "u0": float(centre[0]), "v0": float(centre[1]),
            "sensor_T_ISO_8855": to_sensor[:3].tolist(),
        },
    }  # fmt: skip
    city = name.split("_")[0]
    for part in ("gtBbox3d", "leftImg8bit"):
        (root / part / "train" / city).mkdir(parents=True, exist_ok=True)
    (root / "gtBbox3d" / "train" / city / f"{name}_gtBbox3d.json").write_text(json.dumps(content))
    Image.fromarray(camera.image_HWC).save(root / "leftImg8bit" / "train" / city / f"{name}_leftImg8bit.png")


def test_an_image_of_cityscapes_is_read_with_its_label_file_beside_it(tmp_path):
    frame = scene(np.random.default_rng(5), sensors=Sensors(image_scale=0.5, azimuth_step_deg=1.0))
    write_city(frame, tmp_path, "aachen_000000_000019")
    files = sorted(tmp_path.rglob("aachen_000000_000019*"))
    beside = [shutil.copy(file, tmp_path) for file in files]
    (read,) = read_frames([tmp_path / file for file in beside])
    assert read.name == "aachen_000000_000019" and list(read.cameras) == ["leftImg8bit"]
    (tmp_path / "aachen_000000_000019_leftImg8bit.png").unlink()
    with pytest.raises(InvalidInputError, match="is not beside aachen_000000_000019_gtBbox3d"):
        read_frames([tmp_path / "aachen_000000_000019_gtBbox3d.json"])
    write_city(frame, tmp_path, "aachen_000000_000020")
    with pytest.raises(InvalidInputError, match="hand in one Cityscapes 3D image at a time"):
        read_frames([tmp_path / "gtBbox3d"])


def test_an_image_of_cityscapes_that_was_resized_is_remarked_on(tmp_path):
    from PIL import Image

    frame = scene(np.random.default_rng(5), sensors=Sensors(image_scale=0.5, azimuth_step_deg=1.0))
    write_city(frame, tmp_path, "aachen_000000_000019")
    file, label = (
        shutil.copy(one, tmp_path) for one in sorted(tmp_path.rglob("aachen_*"), reverse=True) if one.is_file()
    )
    (read,) = read_frames([Path(label), Path(file)])
    assert not read.remarks
    with Image.open(file) as image:
        image.resize((image.width // 2, image.height // 2)).save(file)
    (read,) = read_frames([Path(label), Path(file)])
    assert any("Was the image resized after it was calibrated?" in remark for remark in read.remarks)
