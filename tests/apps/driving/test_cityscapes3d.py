"""Cityscapes 3D: labels are read as boxes, and images with the label file beside them."""

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
from apps.driving.inference.folder import predict_folder
from apps.driving.outputs import cityscapes3d as city_results
from apps.driving.predictor import Options
from apps.driving.types import CameraInput, LidarInput
from shared.deploy.predictor import Request
from shared.errors import InvalidInputError

ALL_ROUND = LidarInput(range_m=(-51.2, -51.2, -5.0, 51.2, 51.2, 3.0))
HALF_SIZE = CameraInput(image=(192, 640), focal_px=360.77)


pytestmark = pytest.mark.usefixtures("empty_cache")


def test_cityscapes_3d_labels_project_to_their_2d_boxes(tmp_path):
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
    with pytest.raises(InvalidInputError, match="is neither beside aachen_000000_000019_gtBbox3d"):
        read_frames([tmp_path / "aachen_000000_000019_gtBbox3d.json"])
    write_city(frame, tmp_path, "aachen_000000_000020")
    sentence = "give one Cityscapes 3D image at a time; .*--each"
    with pytest.raises(InvalidInputError, match=sentence):
        read_frames([tmp_path / "gtBbox3d"])


def test_an_image_and_its_label_file_may_be_in_their_own_folders(tmp_path):
    frame = scene(np.random.default_rng(5), sensors=Sensors(image_scale=0.5, azimuth_step_deg=1.0))
    write_city(frame, tmp_path, "aachen_000000_000019")
    files = [file for file in tmp_path.rglob("aachen_*") if file.is_file()]
    (read,) = read_frames(files)
    assert read.truth is not None and np.array_equal(
        read.cameras["leftImg8bit"].image_HWC, frame.cameras["image_2"].image_HWC
    )


def test_a_resized_cityscapes_image_gets_a_remark(tmp_path):
    from PIL import Image

    frame = scene(np.random.default_rng(5), sensors=Sensors(image_scale=0.5, azimuth_step_deg=1.0))
    write_city(frame, tmp_path, "aachen_000000_000019")
    file, label = (
        shutil.copy(file, tmp_path) for file in sorted(tmp_path.rglob("aachen_*"), reverse=True) if file.is_file()
    )
    (read,) = read_frames([Path(label), Path(file)])
    assert not read.remarks
    with Image.open(file) as image:
        image.resize((image.width // 2, image.height // 2)).save(file)
    (read,) = read_frames([Path(label), Path(file)])
    assert any("Was the image resized after calibration?" in remark for remark in read.remarks)


STUTTGART = {
    "intrinsic": {"fx": 2262.52, "fy": 2265.3017905988554, "u0": 1096.98, "v0": 513.137},
    "extrinsic": {"baseline": 0.209313, "pitch": 0.038, "roll": 0.0, "x": 1.7, "y": 0.1, "yaw": -0.0195, "z": 1.22},
}
"""A camera of Cityscapes, as its ``*_camera.json`` has it."""
STUTTGART_TO_SENSOR = (
    (0.9990881051503779, -0.01948468779721943, -0.03799085532693703, -1.6501524664770573),
    (0.019498764210995674, 0.9998098810245096, 0.0, -0.1331288872611436),
    (0.03798363254444427, -0.0007407747301939942, 0.9992780868764849, -1.2836173638418473),
)
"""``sensor_T_ISO_8855`` of the same camera in the labels of Cityscapes 3D."""


def write_camera(root, name, content):
    city = name.split("_")[0]
    (root / "camera" / "test" / city).mkdir(parents=True, exist_ok=True)
    file = root / "camera" / "test" / city / f"{name}_camera.json"
    file.write_text(json.dumps(content))
    return file


def write_image(root, name, size=(64, 32)):
    from PIL import Image

    folder = root / "leftImg8bit" / "test" / name.split("_")[0]
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(folder / f"{name}_leftImg8bit.png")
    return folder / f"{name}_leftImg8bit.png"


def test_a_camera_file_agrees_with_the_labels_of_the_same_camera(tmp_path):
    image = write_image(tmp_path, "stuttgart_000000_000019", (2048, 1024))
    write_camera(tmp_path, "stuttgart_000000_000019", STUTTGART)
    (frame,) = read_frames([image])
    camera = frame.cameras["leftImg8bit"]
    to_sensor = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0]]) @ camera.lidar_to_camera.astype(np.float64)
    assert to_sensor == pytest.approx(np.array(STUTTGART_TO_SENSOR), abs=1e-6)
    assert camera.intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]] == pytest.approx([2262.52, 2265.3018, 1096.98, 513.137])
    assert frame.name == "stuttgart_000000_000019" and frame.truth is None and not frame.remarks


def test_an_image_is_named_from_within_its_folder(tmp_path, monkeypatch):
    image = write_image(tmp_path, "stuttgart_000000_000019", (2048, 1024))
    write_camera(tmp_path, "stuttgart_000000_000019", STUTTGART)
    monkeypatch.chdir(image.parent)
    assert read_frames([Path(image.name)])[0].name == "stuttgart_000000_000019"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"intrinsic": {"fx": 1.0}}, "is not a calibration of Cityscapes"),
        ({"extrinsic": STUTTGART["extrinsic"] | {"yaw": "north"}}, "is not a calibration of Cityscapes"),
        ({"extrinsic": STUTTGART["extrinsic"] | {"x": float("nan")}}, "not finite"),
        ({"intrinsic": STUTTGART["intrinsic"] | {"fx": 0}}, "fx and fy must be positive"),
        ({"extrinsic": STUTTGART["extrinsic"] | {"roll": 1.5}}, "camera pose in a_0_1_camera.json"),
    ],
)
def test_an_invalid_camera_file_is_refused(tmp_path, change, match):
    image = write_image(tmp_path, "a_0_1")
    write_camera(tmp_path, "a_0_1", STUTTGART | change)
    with pytest.raises(InvalidInputError, match=match):
        read_frames([image])


def test_the_error_for_a_missing_calibration_names_its_archive(tmp_path):
    image = write_image(tmp_path, "a_0_1")
    with pytest.raises(InvalidInputError, match=r"a_0_1_camera\.json; unpack camera_trainvaltest\.zip of Cityscapes"):
        read_frames([image])


def test_results_are_files_of_the_benchmark(tmp_path):
    """Ground truth written as a result file and read as labels gives the ground truth in the image."""
    frame = scene(np.random.default_rng(5), sensors=Sensors(image_scale=0.5, azimuth_step_deg=1.0), kind="street")
    write_city(frame, tmp_path, "aachen_000000_000019")
    read = Cityscapes3D(root=tmp_path).frames("train").read(0)
    assert city_results.file_name(read) == "aachen_000000_000019_gtBbox3d.json"
    assert city_results.file_name(frame) is None
    content = json.loads(city_results.write(read.truth, read))
    labels = json.loads((tmp_path / "gtBbox3d/train/aachen/aachen_000000_000019_gtBbox3d.json").read_text())
    known = {(round(box["3d"]["center"][0], 3), box["label"]): box for box in labels["objects"]}
    assert {box["label"] for box in content["objects"]} == {"car"} < {box["label"] for box in labels["objects"]}
    for box in content["objects"]:
        label = known[round(box["3d"]["center"][0], 3), box["label"]]
        assert box["3d"]["center"] == pytest.approx(label["3d"]["center"], abs=1e-4)
        assert box["3d"]["dimensions"] == pytest.approx(label["3d"]["dimensions"], abs=1e-4)
        assert abs(np.dot(box["3d"]["rotation"], label["3d"]["rotation"])) == pytest.approx(1.0, abs=1e-6)
        assert box["2d"]["amodal"] == pytest.approx(label["2d"]["amodal"], abs=1.0)


def test_a_data_set_is_processed_image_by_image(predictor, ask, tmp_path):
    frame = scene(np.random.default_rng(5), sensors=Sensors(image_scale=0.5, azimuth_step_deg=1.0), kind="street")
    write_city(frame, tmp_path, "aachen_000000_000019")
    image = write_image(tmp_path, "berlin_000000_000019", (2048, 1024))
    log = []
    assert predict_folder(predictor, tmp_path, tmp_path / "out", Options(score=0.02), log.append) == 1
    assert any("berlin_000000_000019_leftImg8bit.png has no berlin_000000_000019_camera.json" in line for line in log)
    write_camera(tmp_path, "berlin_000000_000019", STUTTGART)
    assert predict_folder(predictor, tmp_path, tmp_path / "out", Options(score=0.02), log.append) == 0
    written = sorted(file.name for file in (tmp_path / "out" / "cityscapes3d").iterdir())
    assert written == ["aachen_000000_000019_gtBbox3d.json", "berlin_000000_000019_gtBbox3d.json"]
    assert log[-1].endswith("cityscapes3d, the benchmark's result files of the frames done so far")
    (tmp_path / "out2").mkdir()
    assert predict_folder(predictor, image.parent, tmp_path / "out2", Options(score=0.02), log.append) == 0
    assert len((tmp_path / "out2" / "frames.jsonl").read_text().splitlines()) == 1
    loose = shutil.copytree(image.parent, tmp_path / "loose")
    shutil.copy(tmp_path / "camera/test/berlin/berlin_000000_000019_camera.json", loose)
    assert predict_folder(predictor, loose, tmp_path / "out3", Options(score=0.02), log.append) == 0
    response = ask(Request(files=(image,), options={"score": "0.02"}))
    assert json.loads(response.files[written[1]]) == json.loads(
        (tmp_path / "out/cityscapes3d" / written[1]).read_text()
    )
