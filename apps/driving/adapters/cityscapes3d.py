"""Cityscapes 3D (Gählert et al. 2020), read into ``Frame``: an image, its camera, and boxes; there is no LiDAR.

``gtBbox3d/SPLIT/CITY/*_gtBbox3d.json``: ``sensor`` with fx, fy, u0, v0 and ``sensor_T_ISO_8855``, which takes the
vehicle's frame (ISO 8855: x ahead, y left, z up) to one at the camera with the same axes; ``objects`` with ``3d``
(center, dimensions length, width, height, rotation as a quaternion, in the vehicle's frame) and ``2d`` (``modal`` and
``amodal``: x, y, width, height); ``ignore`` with ``2d``. The vehicle's frame stands for ``Frame``'s LiDAR frame.

Images without labels, as those of the test split, are read with ``camera/SPLIT/CITY/*_camera.json`` (Cityscapes'
csCalibration.pdf): ``intrinsic`` with fx, fy, u0, v0, and ``extrinsic``, the camera's place x, y, z in metres and its
yaw, pitch and roll in radians, turned about x, then y, then z, in the vehicle's frame.
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
from apps.driving.adapters.calibration import refuse_mount
from apps.driving.adapters.image_files import read_image, resized
from apps.driving.adapters.nuscenes_tables import rotation_of
from apps.driving.types import Boxes3D, Camera, Floats, Frame
from shared.errors import InvalidInputError

LABELS, IMAGE, CALIBRATION = "_gtBbox3d.json", "_leftImg8bit.png", "_camera.json"
"""How the names of its files end, after city, sequence and frame."""
CAMERA = "leftImg8bit"
"""The camera of its frames, and the folder of its images."""
_LABELS_TREE = "gtBbox3d"
_OPTICAL = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], np.float64)
"""From x ahead, y left, z up to x right, y down, z ahead."""
_HIDDEN = (0.2, 0.6, 0.9)
"""Shares of an object that are hidden, above which it is partly, largely, and hardly to be seen: KITTI's 1, 2, 3."""


def read(labels: Path, image: Path | None) -> Frame:
    """The frame of a label file; without ``image`` its camera is black, in the right size."""
    with _refusing(labels.name, "label file of Cityscapes 3D (sensor, objects with 2d and 3d)"):
        content = json.loads(labels.read_text(encoding="utf-8"))
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused
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
        remarks=resized(image.name, camera.image_HWC.shape, camera.intrinsics) if image else (),
    )


def read_unlabelled(image: Path, calibration: Path) -> Frame:
    """The frame of an image with its ``*_camera.json``, or with its label file, of whose boxes none are read."""
    name = calibration.name
    with _refusing(name, "calibration of Cityscapes (intrinsic with fx, fy, u0, v0; extrinsic with x, y, z, yaw, ...)"):
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
        remarks=resized(image.name, camera.image_HWC.shape, camera.intrinsics),
    )


@contextmanager
def _refusing(name: str, kind: str) -> Iterator[None]:
    """Refuses a file that cannot be read or is no JSON, and one whose content is no ``kind``."""
    try:
        yield
    except OSError as error:
        raise InvalidInputError(f"{name} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InvalidInputError(f"{name} is not JSON: {error}") from error
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise InvalidInputError(f"{name} is no {kind}: {type(error).__name__} {error}") from error


def images_below(folder: Path) -> list[Path]:
    """The images of a data set: below ``leftImg8bit`` in ``folder``, or below ``folder`` where it lies in one; else
    those in ``folder``. Sorted."""
    tree = folder / CAMERA
    if not tree.is_dir() and CAMERA not in folder.resolve().parts:
        return sorted(folder.glob(f"*{IMAGE}"))
    return sorted((tree if tree.is_dir() else folder).rglob(f"*{IMAGE}"))


def image_of(labels: Path) -> Path:
    """The image of a label file: beside it or in the data set's tree."""
    name = labels.name.replace(LABELS, IMAGE)
    found = [file for folder in _folders(labels, _LABELS_TREE, CAMERA) if (file := folder / name).is_file()]
    if not found:
        raise InvalidInputError(
            f"{name} is not beside {labels.name}, nor in {CAMERA} beside {_LABELS_TREE}; hand in both"
        )
    return found[0]


def calibration_of(image: Path) -> Path:
    """The ``*_camera.json`` of an image, else its label file: beside it or in the data set's tree."""
    names = [image.name.replace(IMAGE, ending) for ending in (CALIBRATION, LABELS)]
    folders = _folders(image, CAMERA, "camera", _LABELS_TREE)
    found = [file for folder in folders for name in names if (file := folder / name).is_file()]
    if not found:
        raise InvalidInputError(
            f"{image.name} has no {names[0]}; unpack Cityscapes' camera_trainvaltest.zip beside {CAMERA}"
        )
    return found[0]


def _folders(file: Path, tree: str, *others: str) -> list[Path]:
    """The folder of a file, and where the file lies in ``tree`` of a data set, the same ones in its ``others``."""
    parts = file.absolute().parts
    if tree not in parts:
        return [file.parent]
    at = len(parts) - 1 - parts[::-1].index(tree)
    return [file.parent, *(Path(*parts[:at], other, *parts[at + 1 : -1]) for other in others)]


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
    """``values`` has fx, fy, u0, v0; ``to_sensor`` (4, 4) leads from the vehicle to x ahead of the camera."""
    mount = _OPTICAL @ to_sensor
    refuse_mount(mount, f"the camera's place in {name}")
    intrinsics = np.array([[values["fx"], 0, values["u0"]], [0, values["fy"], values["v0"]], [0, 0, 1]], np.float32)
    if not np.isfinite(intrinsics).all() or min(intrinsics[0, 0], intrinsics[1, 1]) <= 0:
        raise InvalidInputError(f"{name} is not of a camera: fx and fy must be above 0, and all finite")
    return Camera(image_HWC=pixels, intrinsics=intrinsics, lidar_to_camera=mount.astype(np.float32))


def _pose(extrinsic: dict[str, Any], name: str) -> NDArray[np.float64]:
    """(4, 4), from x ahead of the camera to the vehicle."""
    x, y, z, yaw, pitch, roll = box_numbers(
        [extrinsic[key] for key in ("x", "y", "z", "yaw", "pitch", "roll")], name
    ).tolist()
    turns = [(yaw, 2), (pitch, 1), (roll, 0)]
    halves = [[np.cos(angle / 2), *(np.sin(angle / 2) * np.eye(3)[axis])] for angle, axis in turns]
    about_z, about_y, about_x = rotation_of(np.array(halves))
    pose = np.eye(4)
    pose[:3, :3] = about_z @ about_y @ about_x
    pose[:3, 3] = x, y, z
    return pose


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
