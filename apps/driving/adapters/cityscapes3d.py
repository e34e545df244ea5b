"""Cityscapes 3D (Gählert et al. 2020), read into ``Frame``: an image, its camera, and boxes; there is no LiDAR.

``gtBbox3d/SPLIT/CITY/*_gtBbox3d.json``: ``sensor`` with fx, fy, u0, v0 and ``sensor_T_ISO_8855``, which takes the
vehicle's frame (ISO 8855: x ahead, y left, z up) to one at the camera with the same axes; ``objects`` with ``3d``
(center, dimensions length, width, height, rotation as a quaternion, in the vehicle's frame) and ``2d`` (``modal`` and
``amodal``: x, y, width, height); ``ignore`` with ``2d``. The vehicle's frame stands for ``Frame``'s LiDAR frame.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from apps.driving.adapters.box_values import box_numbers
from apps.driving.adapters.calibration import refuse_mount
from apps.driving.adapters.image_files import read_image, resized
from apps.driving.adapters.nuscenes_tables import rotation_of
from apps.driving.types import Boxes3D, Camera, Floats, Frame
from shared.errors import InvalidInputError

_OPTICAL = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], np.float64)
"""From x ahead, y left, z up to x right, y down, z ahead."""
_HIDDEN = (0.2, 0.6, 0.9)
"""Shares of an object that are hidden, above which it is partly, largely, and hardly to be seen: KITTI's 1, 2, 3."""


def read(labels: Path, image: Path | None) -> Frame:
    """The frame of a label file; without ``image`` its camera is black, in the right size."""
    try:
        content = json.loads(labels.read_text(encoding="utf-8"))
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused
            camera = _camera(content, labels.name, image)
        objects = [item for item in content["objects"] if "3d" in item]
        truth = _boxes(objects, labels.name)
        ignored = np.array([_edges(_region(item["2d"]), labels.name) for item in content.get("ignore", ())], np.float32)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InvalidInputError(f"{labels.name} is not JSON: {error}") from error
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise InvalidInputError(
            f"{labels.name} is no label file of Cityscapes 3D (sensor, objects with 2d and 3d): "
            f"{type(error).__name__} {error}"
        ) from error
    return Frame(
        name=labels.name.removesuffix("_gtBbox3d.json"),
        points_lidar_m=None,
        cameras={"leftImg8bit": camera},
        truth=truth,
        ignore_boxes_2d={"leftImg8bit": ignored} if len(ignored) else {},
        remarks=resized(image.name, camera.image_HWC.shape, camera.intrinsics) if image else (),
    )


def _camera(content: dict[str, Any], name: str, image: Path | None) -> Camera:
    sensor = content["sensor"]
    to_sensor = np.eye(4)
    to_sensor[:3] = np.array(sensor["sensor_T_ISO_8855"], np.float64)[:3]
    mount = _OPTICAL @ to_sensor
    refuse_mount(mount, f"sensor_T_ISO_8855 of {name}")
    if image is None:
        size = int(content["imgHeight"]), int(content["imgWidth"]), 3
        pixels = np.broadcast_to(np.zeros((), np.uint8), size)
    else:
        pixels = read_image(image)
    intrinsics = np.array([[sensor["fx"], 0, sensor["u0"]], [0, sensor["fy"], sensor["v0"]], [0, 0, 1]], np.float32)
    if not np.isfinite(intrinsics).all() or min(intrinsics[0, 0], intrinsics[1, 1]) <= 0:
        raise InvalidInputError(f"sensor of {name} is not a camera's: fx and fy must be above 0, and all finite")
    return Camera(
        image_HWC=pixels,
        intrinsics=intrinsics,
        lidar_to_camera=mount.astype(np.float32),
    )


def _boxes(objects: list[dict[str, Any]], name: str) -> Boxes3D:
    count = len(objects)
    table = box_numbers([[*item["3d"]["center"], *item["3d"]["dimensions"]] for item in objects], name)
    quaternions = box_numbers([item["3d"]["rotation"] for item in objects], name).reshape(count, 4)
    heading = rotation_of(quaternions)
    hidden = box_numbers([float(item.get("occlusion", 0.0)) for item in objects], name)
    boxes_2d = [_edges(_region(item["2d"]), name) for item in objects]
    return Boxes3D(
        centre_lidar_m=table.reshape(count, 6)[:, :3].astype(np.float32),
        size_m=table.reshape(count, 6)[:, 3:].astype(np.float32),
        yaw=np.arctan2(heading[:, 1, 0], heading[:, 0, 0]).astype(np.float32),
        names=tuple(str(item["label"]).lower() for item in objects),
        truncation=box_numbers([float(item.get("truncation", 0.0)) for item in objects], name).astype(np.float32),
        occlusion=np.searchsorted(_HIDDEN, hidden, side="left").astype(np.int64),
        box_2d=np.array(boxes_2d, np.float32).reshape(count, 4),
    )


def _region(marked: Any) -> list[float]:
    """x, y, width, height: of the whole object where there is an amodal box."""
    region: list[float] = (marked.get("amodal") or marked["modal"]) if isinstance(marked, dict) else marked
    return region


def _edges(region: list[float], name: str) -> Floats:
    x, y, width, height = box_numbers(region, name)
    return np.array([x, y, x + width, y + height], np.float32)
