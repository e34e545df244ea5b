"""Reads Cityscapes 3D (Gählert et al. 2020) into ``Frame``: an image, its camera, and boxes; there is no LiDAR.

``gtBbox3d/SPLIT/CITY/*_gtBbox3d.json``: ``sensor`` with fx, fy, u0, v0 and ``sensor_T_ISO_8855``, which transforms the
vehicle frame (ISO 8855: x forward, y left, z up) to a frame at the camera with the same axes; ``objects`` with ``3d``
(center, dimensions length, width, height, rotation as a quaternion, in the vehicle frame) and ``2d`` (``modal`` and
``amodal``: x, y, width, height); ``ignore`` with ``2d``. The vehicle frame is used as ``Frame``'s LiDAR frame.

Images without labels, such as those of the test split, are read with ``camera/SPLIT/CITY/*_camera.json`` (Cityscapes'
csCalibration.pdf): ``intrinsic`` with fx, fy, u0, v0, and ``extrinsic``, the camera's position x, y, z in metres and
its yaw, pitch and roll in radians in the vehicle frame, applied about x, then y, then z.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.driving.adapters.box_values import box_numbers
from apps.driving.adapters.calibration import check_lidar_to_camera
from apps.driving.adapters.image_files import read_image, resize_remarks
from apps.driving.adapters.nuscenes_tables import rotation_of
from apps.driving.types import Boxes3D, Camera, Floats, Frame
from shared.errors import InvalidInputError

LABELS, IMAGE, CALIBRATION = "_gtBbox3d.json", "_leftImg8bit.png", "_camera.json"
"""The ends of its file names, after city, sequence and frame."""
CAMERA = "leftImg8bit"
"""The name of its camera, and of the folder of its images."""
_LABELS_TREE = "gtBbox3d"
_TO_OPTICAL_AXES = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], np.float64)
"""From x forward, y left, z up to x right, y down, z forward."""
_OCCLUSION_LEVELS = (0.2, 0.6, 0.9)
"""Thresholds on the occluded fraction of an object for KITTI's levels 1 (partly), 2 (largely), 3 (hardly visible)."""


def read(labels: Path, image: Path | None) -> Frame:
    """The frame of a label file; without ``image`` its camera image is black, in the right size."""
    with _reading(labels.name, "label file of Cityscapes 3D (sensor, objects with 2d and 3d)"):
        content = json.loads(labels.read_text(encoding="utf-8"))
        with np.errstate(over="ignore", invalid="ignore"):  # values that are not finite are refused
            camera = _camera(content, labels.name, image)
        objects = [item for item in content["objects"] if "3d" in item]
        truth = _boxes(objects, labels.name)
        ignored = np.array([_edges(_region(item["2d"]), labels.name) for item in content.get("ignore", ())], np.float32)
    return Frame(
        name=labels.name.removesuffix(LABELS),
        points_lidar_m=None,
        cameras={CAMERA: camera},
        truth=truth,
        ignore_boxes_2d={CAMERA: ignored} if len(ignored) else {},
        remarks=resize_remarks(image.name, camera.image_HWC.shape, camera.intrinsics) if image else (),
    )


def read_unlabelled(image: Path, calibration: Path) -> Frame:
    """The frame of an image with its ``*_camera.json``, or with its label file, whose boxes are not read."""
    name = calibration.name
    with _reading(name, "calibration of Cityscapes (intrinsic with fx, fy, u0, v0; extrinsic with x, y, z, yaw, ...)"):
        content = json.loads(calibration.read_text(encoding="utf-8"))
        if name.endswith(LABELS):
            camera = _camera(content, name, image)
        else:
            to_sensor = np.linalg.inv(_pose(content["extrinsic"], name)).astype(np.float64)
            camera = _calibrated(read_image(image), content["intrinsic"], to_sensor, name)
    return Frame(
        name=image.name.removesuffix(IMAGE),
        points_lidar_m=None,
        cameras={CAMERA: camera},
        remarks=resize_remarks(image.name, camera.image_HWC.shape, camera.intrinsics),
    )


@contextmanager
def _reading(name: str, kind: str) -> Iterator[None]:
    """Raises ``InvalidInputError`` if a file cannot be read, is not JSON, or is not a ``kind``."""
    try:
        yield
    except OSError as error:
        raise InvalidInputError(f"{name} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InvalidInputError(f"{name} is not JSON: {error}") from error
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise InvalidInputError(f"{name} is not a {kind}: {type(error).__name__} {error}") from error


def images_below(folder: Path) -> list[Path]:
    """The sorted images of a data set: below ``folder/leftImg8bit``, or below ``folder`` if it is in such a folder,
    else directly in ``folder``."""
    tree = folder / CAMERA
    if not tree.is_dir() and CAMERA not in folder.resolve().parts:
        return sorted(folder.glob(f"*{IMAGE}"))
    return sorted((tree if tree.is_dir() else folder).rglob(f"*{IMAGE}"))


def image_of(labels: Path) -> Path:
    """The image of a label file, beside it or in the data set's tree."""
    name = labels.name.replace(LABELS, IMAGE)
    found = [file for folder in _folders(labels, _LABELS_TREE, CAMERA) if (file := folder / name).is_file()]
    if not found:
        raise InvalidInputError(
            f"{name} is neither beside {labels.name} nor in {CAMERA} beside {_LABELS_TREE}; give both files"
        )
    return found[0]


def calibration_of(image: Path) -> Path:
    """The ``*_camera.json`` of an image, else its label file; beside it or in the data set's tree."""
    names = [image.name.replace(IMAGE, ending) for ending in (CALIBRATION, LABELS)]
    folders = _folders(image, CAMERA, "camera", _LABELS_TREE)
    found = [file for folder in folders for name in names if (file := folder / name).is_file()]
    if not found:
        raise InvalidInputError(
            f"{image.name} has no {names[0]}; unpack camera_trainvaltest.zip of Cityscapes beside {CAMERA}"
        )
    return found[0]


def _folders(file: Path, tree: str, *others: str) -> list[Path]:
    """The folder of a file and, if the file is in the data set's ``tree``, the corresponding folders in ``others``."""
    parts = file.absolute().parts
    if tree not in parts:
        return [file.parent]
    at = len(parts) - 1 - parts[::-1].index(tree)
    return [file.parent, *(Path(*parts[:at], name, *parts[at + 1 : -1]) for name in others)]


def _camera(content: dict[str, Any], name: str, image: Path | None) -> Camera:
    to_sensor = np.eye(4)
    to_sensor[:3] = np.array(content["sensor"]["sensor_T_ISO_8855"], np.float64)[:3]
    if image is None:
        size = int(content["imgHeight"]), int(content["imgWidth"]), 3
        pixels = np.broadcast_to(np.zeros((), np.uint8), size)
    else:
        pixels = read_image(image)
    return _calibrated(pixels, content["sensor"], to_sensor, name)


def _calibrated(pixels: NDArray[np.uint8], values: dict[str, Any], to_sensor: NDArray[np.float64], name: str) -> Camera:
    """``values`` has fx, fy, u0, v0; ``to_sensor`` (4, 4) transforms the vehicle frame to one at the camera (x
    forward).
    """
    lidar_to_camera = _TO_OPTICAL_AXES @ to_sensor
    check_lidar_to_camera(lidar_to_camera, f"the camera pose in {name}")
    intrinsics = np.array([[values["fx"], 0, values["u0"]], [0, values["fy"], values["v0"]], [0, 0, 1]], np.float32)
    if not np.isfinite(intrinsics).all() or min(intrinsics[0, 0], intrinsics[1, 1]) <= 0:
        raise InvalidInputError(f"{name} is not a valid calibration: fx and fy must be positive, all values finite")
    return Camera(image_HWC=pixels, intrinsics=intrinsics, lidar_to_camera=lidar_to_camera.astype(np.float32))


def _pose(extrinsic: dict[str, Any], name: str) -> NDArray[np.float64]:
    """The pose (4, 4) of the camera, with x forward, in the vehicle frame."""
    x, y, z, yaw, pitch, roll = box_numbers(
        [extrinsic[key] for key in ("x", "y", "z", "yaw", "pitch", "roll")], name
    ).tolist()
    rotations = [(yaw, 2), (pitch, 1), (roll, 0)]
    quaternions = [[np.cos(angle / 2), *(np.sin(angle / 2) * np.eye(3)[axis])] for angle, axis in rotations]
    about_z, about_y, about_x = rotation_of(np.array(quaternions))
    pose = np.eye(4)
    pose[:3, :3] = about_z @ about_y @ about_x
    pose[:3, 3] = x, y, z
    return pose


def _boxes(objects: list[dict[str, Any]], name: str) -> Boxes3D:
    count = len(objects)
    table = box_numbers([[*item["3d"]["center"], *item["3d"]["dimensions"]] for item in objects], name)
    quaternions = box_numbers([item["3d"]["rotation"] for item in objects], name).reshape(count, 4)
    heading = rotation_of(quaternions)
    occluded = box_numbers([float(item.get("occlusion", 0.0)) for item in objects], name)
    boxes_2d = [_edges(_region(item["2d"]), name) for item in objects]
    return Boxes3D(
        centre_lidar_m=table.reshape(count, 6)[:, :3].astype(np.float32),
        size_m=table.reshape(count, 6)[:, 3:].astype(np.float32),
        yaw=np.arctan2(heading[:, 1, 0], heading[:, 0, 0]).astype(np.float32),
        names=tuple(str(item["label"]).lower() for item in objects),
        truncation=box_numbers([float(item.get("truncation", 0.0)) for item in objects], name).astype(np.float32),
        occlusion=np.searchsorted(_OCCLUSION_LEVELS, occluded, side="left").astype(np.int64),
        box_2d=np.array(boxes_2d, np.float32).reshape(count, 4),
    )


def _region(annotation: Any) -> list[float]:
    """x, y, width, height of the whole object if there is an amodal box, else of its visible part."""
    region: list[float] = (
        (annotation.get("amodal") or annotation["modal"]) if isinstance(annotation, dict) else annotation
    )
    return region


def _edges(region: list[float], name: str) -> Floats:
    x, y, width, height = box_numbers(region, name)
    return np.array([x, y, x + width, y + height], np.float32)
