"""nuScenes' own tables (``v1.0-*/*.json``; Caesar et al. 2020), joined into one description for each key frame.

A description has OpenMMLab's info layout, which ``adapters.nuscenes`` reads: paths relative to the data set's root,
sensor poses as matrices, boxes in the frame of the top LiDAR. The schema is in docs/schema_nuscenes.md of
nuscenes-devkit.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import InvalidInputError

LIDAR = "LIDAR_TOP"
MAX_SWEEPS = 10
"""The maximum number of earlier sweeps per key frame; nuScenes models are trained with this many."""
DETECTION_NAMES = {
    "movable_object.barrier": "barrier",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
}
"""The class in the detection benchmark by category; other categories keep their names."""
Matrix = NDArray[np.float64]


def key_frames(root: Path, version: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(scene name, description) of each key frame, in the order of the sample table."""
    try:
        yield from _joined_tables(root, version)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise InvalidInputError(
            f"{root / version} does not have tables in nuScenes' schema: {type(error).__name__} {error}"[:1000]
        ) from error


def _joined_tables(root: Path, version: str) -> Iterator[tuple[str, dict[str, Any]]]:
    tables = {
        name: _table(root, version, name)
        for name in ("sample", "scene", "calibrated_sensor", "sensor", "ego_pose", "instance", "category")
    }
    by_token = {name: {row["token"]: row for row in rows} for name, rows in tables.items()}
    recordings: dict[str, dict[str, Any]] = defaultdict(dict)
    sweeps: dict[str, Any] = {}
    for row in _table(root, version, "sample_data"):
        sensor = by_token["sensor"][by_token["calibrated_sensor"][row["calibrated_sensor_token"]]["sensor_token"]]
        if row["is_key_frame"]:
            recordings[row["sample_token"]][sensor["channel"]] = row
        if sensor["channel"] == LIDAR:
            sweeps[row["token"]] = row
    by_token["sweep"] = sweeps
    annotations: dict[str, list[Any]] = defaultdict(list)
    for row in _table(root, version, "sample_annotation"):
        annotations[row["sample_token"]].append(row)
    for sample in tables["sample"]:
        recordings_by_channel = recordings[sample["token"]]
        if LIDAR in recordings_by_channel:
            scene = by_token["scene"][sample["scene_token"]]["name"]
            with np.errstate(all="ignore"):  # values that are not finite are refused when the frame is read
                description = _description(sample, recordings_by_channel, annotations[sample["token"]], by_token)
            yield scene, description


def _description(
    sample: dict[str, Any],
    recordings_by_channel: dict[str, Any],
    annotations: list[Any],
    tables: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    lidar = _to_global(recordings_by_channel[LIDAR], tables)
    images = {}
    for channel, row in sorted(recordings_by_channel.items()):
        sensor = tables["calibrated_sensor"][row["calibrated_sensor_token"]]
        if sensor.get("camera_intrinsic"):
            images[channel] = {
                "img_path": row["filename"],
                "cam2img": sensor["camera_intrinsic"],
                "lidar2cam": (np.linalg.inv(_to_global(row, tables)) @ lidar).tolist(),
            }
    from_global = np.linalg.inv(lidar)
    instances = []
    for annotation in annotations:
        category = tables["category"][tables["instance"][annotation["instance_token"]]["category_token"]]["name"]
        box = from_global @ _transform(annotation["rotation"], annotation["translation"])
        width, length, height = annotation["size"]
        instances.append(
            {
                "name": DETECTION_NAMES.get(category, category),
                "bbox_3d": [*box[:3, 3].tolist(), length, width, height, float(np.arctan2(box[1, 0], box[0, 0]))],
                "num_lidar_pts": annotation.get("num_lidar_pts", -1),
            }
        )
    return {
        "token": sample["token"],
        "timestamp": sample["timestamp"] / 1e6,
        "ego2global": _ego_to_global(recordings_by_channel[LIDAR], tables).tolist(),
        "lidar_points": {
            "lidar_path": recordings_by_channel[LIDAR]["filename"],
            "lidar2ego": _sensor_to_ego(recordings_by_channel[LIDAR], tables).tolist(),
        },
        "lidar_sweeps": list(_sweeps_before(recordings_by_channel[LIDAR], lidar, tables)),
        "images": images,
        "instances": instances,
    }


def _sweeps_before(
    row: dict[str, Any], lidar_to_global: Matrix, tables: dict[str, dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """The sweeps before a key frame's own, the latest first, described as in OpenMMLab's info files."""
    for _ in range(MAX_SWEEPS):
        if (previous := tables["sweep"].get(row.get("prev", ""))) is None:
            return
        row = previous
        to_sensor = np.linalg.inv(_to_global(row, tables)) @ lidar_to_global
        yield {
            "timestamp": row["timestamp"] / 1e6,
            "lidar_points": {"lidar_path": row["filename"], "lidar2sensor": to_sensor.tolist()},
        }


def _to_global(row: dict[str, Any], tables: dict[str, dict[str, Any]]) -> Matrix:
    """The pose (4, 4) of the sensor in the global frame at the time of this recording."""
    return _ego_to_global(row, tables) @ _sensor_to_ego(row, tables)


def _ego_to_global(row: dict[str, Any], tables: dict[str, dict[str, Any]]) -> Matrix:
    pose = tables["ego_pose"][row["ego_pose_token"]]
    return _transform(pose["rotation"], pose["translation"])


def _sensor_to_ego(row: dict[str, Any], tables: dict[str, dict[str, Any]]) -> Matrix:
    sensor = tables["calibrated_sensor"][row["calibrated_sensor_token"]]
    return _transform(sensor["rotation"], sensor["translation"])


def _transform(rotation_wxyz: list[float], translation: list[float]) -> Matrix:
    transform = np.eye(4)
    transform[:3, :3] = rotation_of(np.array(rotation_wxyz, np.float64))
    transform[:3, 3] = translation
    return transform


def rotation_of(wxyz: NDArray[np.float64]) -> Matrix:
    """(..., 3, 3) rotations from quaternions (..., 4), scalar first, of any length except zero."""
    w, x, y, z = np.moveaxis(wxyz / np.linalg.norm(wxyz, axis=-1, keepdims=True), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def _table(root: Path, version: str, name: str) -> list[dict[str, Any]]:
    file = root / version / f"{name}.json"
    try:
        rows: list[dict[str, Any]] = json.loads(file.read_bytes())
    except OSError as error:
        raise InvalidInputError(f"{file} cannot be read: {error.strerror}; nuScenes tables are there") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{file} is not JSON: {error}") from error
    return rows
