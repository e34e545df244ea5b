"""Earlier sweeps of a nuScenes key frame: described, read, transformed into its frame, and passed to the networks."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from apps.driving.adapters import nuscenes
from apps.driving.datasets.nuscenes import NuScenes
from apps.driving.inference.detect import LidarDetector
from apps.driving.models.configurations import MMDet3DModel
from apps.driving.models.detectors import network_of, point_layout
from apps.driving.models.library import load
from apps.driving.outputs.whole_frame import read_whole_frame, whole_frame
from apps.driving.predictor import DrivingPredictor
from apps.driving.types import Camera, EarlierSweep, Frame

CENTERPOINT = "centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d"
SSN = "ssn_hv_secfpn_sbn-all_16xb2-2x_nus-3d"
LANDMARKS = np.array([[12.0, 30.0, 1.0], [-8.0, 25.0, 2.0], [3.0, 60.0, 0.5], [0.2, 0.3, -1.0]])
"""Positions in the global frame that every sweep sees, in nuScenes' axes; the last one moves with the vehicle."""
HZ = 20


def pose(number, turning):
    """The vehicle ``number`` sweeps before the key frame, 10 m/s ahead (y of the LiDAR)."""
    angle = 0.05 * number if turning else 0.0
    found = np.eye(4)
    found[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    found[:3, 3] = 0.0, -10.0 / HZ * number, 0.0
    return found


def write_tables(root, *, turning, sweeps=12):
    """Tables of one key frame and its earlier sweeps; the LiDAR is 1.8 m above the vehicle's origin."""
    (root / "v1.0-mini").mkdir()
    (root / "samples/LIDAR_TOP").mkdir(parents=True)
    (root / "sweeps/LIDAR_TOP").mkdir(parents=True)
    data, poses = [], []
    for number in range(sweeps + 1):
        folder, at = ("samples" if number == 0 else "sweeps"), pose(number, turning)
        angle = np.arctan2(at[1, 0], at[0, 0]) / 2
        poses.append(
            {"token": f"p{number}", "rotation": [np.cos(angle), 0, 0, np.sin(angle)], "translation": at[:3, 3].tolist()}
        )
        data.append(
            {
                "token": f"d{number}", "prev": f"d{number + 1}" if number < sweeps else "", "sample_token": "s",
                "ego_pose_token": f"p{number}", "calibrated_sensor_token": "c", "is_key_frame": number == 0,
                "filename": f"{folder}/LIDAR_TOP/{number}.bin", "timestamp": round(1e6 * (1000 - number / HZ)),
            }
        )  # fmt: skip
        landmarks = (LANDMARKS[:3] - [0, 0, 1.8] - at[:3, 3]) @ at[:3, :3]
        rows = np.concatenate([landmarks, LANDMARKS[3:] - [0, 0, 1.8]])
        points = np.concatenate([rows, [[10.0 * number, 7]] * 4], axis=1).astype("<f4")
        (root / data[-1]["filename"]).write_bytes(points.tobytes())
    tables = {
        "sample": [{"token": "s", "timestamp": 1_000_000_000, "scene_token": "scene"}],
        "scene": [{"token": "scene", "name": "scene-0001"}],
        "ego_pose": poses,
        "sensor": [{"token": "l", "channel": "LIDAR_TOP"}],
        "calibrated_sensor": [
            {"token": "c", "sensor_token": "l", "rotation": [1, 0, 0, 0], "translation": [0, 0, 1.8]}
        ],
        "sample_data": data, "category": [], "instance": [], "sample_annotation": [],
    }  # fmt: skip
    for name, rows in tables.items():
        (root / "v1.0-mini" / f"{name}.json").write_text(json.dumps(rows))


def key_frame(root):
    data = NuScenes(root=root, version="v1.0-mini", validation_scenes=root / "scenes.txt")
    (root / "scenes.txt").write_text("scene-0001\n")
    return data.cases().read(0)


@pytest.mark.parametrize("turning", [False, True])
def test_earlier_sweeps_are_transformed_into_the_key_frame(tmp_path, turning):
    write_tables(tmp_path, turning=turning)
    frame = key_frame(tmp_path)
    assert [sweep.seconds for sweep in frame.earlier_sweeps] == pytest.approx([n / HZ for n in range(1, 11)])
    points = point_layout(MMDet3DModel(config=SSN)).points(frame)
    assert points.shape == (4 * 11, 5) and points[:4, 4].tolist() == [0, 0, 0, 0]
    assert points[:4, :4] == pytest.approx(frame.points_lidar_m)
    for number in range(11):
        sweep_points = points[4 * number : 4 * number + 4]
        # Static objects stay in place; what moves with the vehicle appears farther back.
        assert sweep_points[:3, :3] == pytest.approx(points[:3, :3], abs=1e-4)
        assert number == 0 or np.linalg.norm(sweep_points[3, :3] - points[3, :3]) > 0.45 * number
        assert sweep_points[:, 3] == pytest.approx(10.0 * number / 255) and sweep_points[:, 4] == pytest.approx(
            number / HZ
        )


def test_a_frame_kept_in_full_is_restored_unchanged(tmp_path):
    write_tables(tmp_path, turning=True)
    camera = Camera(
        image_HWC=np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8),
        intrinsics=np.eye(3, dtype=np.float32),
        lidar_to_camera=np.eye(4, dtype=np.float32),
        reference_offset_m=np.float32([0.06, 0, 0]),
    )
    frame = replace(key_frame(tmp_path), cameras={"CAM_FRONT": camera})
    restored = read_whole_frame(whole_frame(frame), frame.name)
    layout = point_layout(MMDet3DModel(config=SSN))
    assert np.array_equal(layout.points(restored), layout.points(frame)) and len(restored.earlier_sweeps) == 10
    assert np.array_equal(restored.lidar_to_global, frame.lidar_to_global)
    (restored_camera,) = restored.cameras.values()
    assert np.array_equal(restored_camera.image_HWC, camera.image_HWC)
    assert np.array_equal(restored_camera.reference_offset_m, camera.reference_offset_m)


def test_earlier_sweeps_equal_those_loaded_by_mmdet3d(tmp_path):
    """Compares with mmdet3d's own loader for a vehicle driving straight ahead, for the layouts of both families."""
    load()
    from mmdet3d.structures import LiDARPoints

    # The surrounding package needs devkits that are not installed.
    file = Path(importlib.util.find_spec("mmdet3d").origin).with_name("datasets") / "transforms" / "loading.py"
    spec = importlib.util.spec_from_file_location("mmdet3d_loading", file)
    loading = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loading)

    write_tables(tmp_path, turning=False)
    frame = key_frame(tmp_path)
    description = json.loads((NuScenes(root=tmp_path, version="v1.0-mini")._index() / "frames.jsonl").read_text())
    for sweep in description["lidar_sweeps"]:
        sweep["lidar_points"]["lidar_path"] = str(tmp_path / sweep["lidar_points"]["lidar_path"])
    for config, settings in ((SSN, {"sweeps_num": 10}), (CENTERPOINT, {"sweeps_num": 9, "use_dim": [0, 1, 2, 3, 4]})):
        raw = torch.from_numpy(np.fromfile(tmp_path / "samples/LIDAR_TOP/0.bin", "<f4").reshape(-1, 5))
        key = {"points": LiDARPoints(raw, points_dim=5), "timestamp": 1000.0}
        close = config == CENTERPOINT
        theirs = loading.LoadPointsFromMultiSweeps(
            test_mode=True, remove_close=close, pad_empty_sweeps=close, **settings
        )
        expected = theirs.transform(key | {"lidar_sweeps": description["lidar_sweeps"]})["points"].tensor
        layout = point_layout(MMDet3DModel(config=config))
        found = layout.to_network(torch.from_numpy(layout.points(frame)))
        assert found.shape == expected.shape == ((44, 4) if config == SSN else (4 + 9 * 3, 5))
        assert torch.allclose(found, expected, atol=2e-3)


def test_fewer_sweeps_than_in_training_get_a_remark():
    torch.manual_seed(1)
    model = MMDet3DModel(config=CENTERPOINT)
    detector = LidarDetector(network_of(model, model.build()), model.input())
    predictor = DrivingPredictor(detectors={"mmdet3d_lidar": detector}, least_scores={})
    generator = np.random.default_rng(0)
    points = generator.uniform([-50, -50, -2, 0], [50, 50, 1, 1], (2000, 4)).astype(np.float32)
    sweep = EarlierSweep(points_lidar_m=points + np.float32([5, 0, 0, 0]), to_frame=np.eye(4), seconds=0.05)
    frame = Frame(name="one", points_lidar_m=points, cameras={})
    several = replace(frame, earlier_sweeps=(sweep,) * 9)
    found = predictor.predict([frame, replace(frame, earlier_sweeps=(sweep,)), several])
    one, two, ten = ([text for text in detections.remarks if "together" in text] for detections in found)
    assert one == ["One sweep is used; mmdet3d_lidar was trained on 10 together and finds fewer objects in fewer."]
    assert (
        two == ["2 sweeps are used; mmdet3d_lidar was trained on 10 together and finds fewer objects in fewer."]
        and not ten
    )
    assert not np.array_equal(found[0].boxes.array, found[2].boxes.array)


def test_earlier_sweeps_are_read_if_present_and_skipped_if_missing(tmp_path):
    motion = np.eye(4)
    motion[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    motion[:3, 3] = 1, 2, 0

    def described(name, matrix):
        return {"timestamp": 9.95, "lidar_points": {"lidar_path": f"sweeps/{name}.bin", "lidar2sensor": matrix}}

    sample = {
        "timestamp": 10.0,
        "lidar_points": {"lidar_path": "samples/key.bin"},
        "images": {},
        "lidar_sweeps": [described("there", motion.tolist()), described("away", motion.tolist())],
    }
    content = {"metainfo": {"categories": {}}, "data_list": [sample]}
    (tmp_path / "sample.json").write_text(json.dumps(content))
    for name in ("key", "there"):
        (tmp_path / f"{name}.bin").write_bytes(np.array([[1, 2, 0, 51, 3]], "<f4").tobytes())
    (frame,) = nuscenes.read(tmp_path)
    (sweep,) = frame.earlier_sweeps
    assert sweep.seconds == pytest.approx(0.05)
    place = sweep.to_frame @ [*sweep.points_lidar_m[0, :3], 1]
    assert place[:3] == pytest.approx([0, 0, 0])
    sample["lidar_sweeps"][0]["lidar_points"]["lidar2sensor"] = (2 * motion).tolist()
    (tmp_path / "sample.json").write_text(json.dumps(content))
    from shared.errors import InvalidInputError

    with pytest.raises(InvalidInputError, match=r"lidar2sensor of there\.bin: its first three columns are not a rot"):
        nuscenes.read(tmp_path)
