"""nuScenes key frames, described in OpenMMLab's info layout, read into ``Frame`` with six cameras.

The x axis of nuScenes' LiDAR points right, y forward, z up (Caesar et al. 2020); in ``Frame`` x points forward. Points,
boxes and calibrations are rotated by 90 degrees on reading, and back on writing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.driving.adapters.box_values import box_numbers
from apps.driving.adapters.calibration import check_lidar_to_camera, check_rigid
from apps.driving.adapters.image_files import read_image, resize_remarks
from apps.driving.adapters.nuscenes_tables import MAX_SWEEPS
from apps.driving.adapters.point_files import dropped_remarks, finite_points
from apps.driving.types import Boxes3D, Camera, EarlierSweep, Floats, Frame, wrap_angle
from shared.errors import InvalidInputError

COLUMNS = 5
_MAX_NAME_BYTES = 100
_TO_FRAME_AXES = np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]], np.float64)
"""Rotation from nuScenes' LiDAR frame to ``Frame``'s LiDAR frame."""


@dataclass(frozen=True, slots=True)
class KeyFrameDescriptions:
    """The key frames described by a ``sample.json``: its path, its class names by number, and one description each."""

    info: Path
    classes: Mapping[int, str]
    samples: Sequence[dict[str, Any]]

    def read(
        self,
        sample: dict[str, Any],
        *,
        images: bool = True,
        labelled: bool = True,
        earlier: Callable[[Path], Floats] | None = None,
    ) -> Frame:
        """The frame of one of ``samples``. Raises ``InvalidInputError``."""
        description = sample if labelled else {name: part for name, part in sample.items() if name != "instances"}
        with in_info_layout(self.info):
            return read_described(
                description,
                self.classes,
                lambda name: _file_beside(self.info, name),
                with_images=images,
                earlier=earlier,
            )


def read(path: Path) -> list[Frame]:
    """The key frames of a ``sample.json``, or of a folder that contains one."""
    descriptions = describe(path)
    earlier = cache(read_points)  # frames share their earlier sweeps
    return [descriptions.read(sample, earlier=earlier) for sample in descriptions.samples]


def describe(path: Path) -> KeyFrameDescriptions:
    """The descriptions in a ``sample.json``, or in that of a folder. Reads neither sweeps nor images."""
    info = path / "sample.json" if path.is_dir() else path
    if not info.is_file():
        raise InvalidInputError(f"{path.name} has no sample.json, which describes a nuScenes key frame")
    try:
        content = json.loads(info.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InvalidInputError(f"{info.name} is not JSON: {error}") from error
    if isinstance(content, list):
        raise InvalidInputError(
            f"{info.parent.name}/{info.name} is one of nuScenes' own tables; to process the data set, use the command "
            "line: trivium predict driving NUSCENES --each --out DIR"
        )
    with in_info_layout(info):
        samples = content["data_list"]
        _check_no_repeated_files(samples, info.name)
        _check_unique_names([frame_name(sample) for sample in samples], info.name)
        return KeyFrameDescriptions(info, class_names(content), samples)


@contextmanager
def in_info_layout(info: Path) -> Iterator[None]:
    """Turns errors in reading a description into an ``InvalidInputError`` about the info layout."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # values that are not finite are refused
            yield
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise InvalidInputError(
            f"{info.name} is not in the info layout (metainfo.categories, data_list with images, lidar_points and "
            f"instances): {type(error).__name__} {error}"
        ) from error


def _check_no_repeated_files(samples: list[dict[str, Any]], name: str) -> None:
    """Raises ``InvalidInputError`` if a file is named twice: a short description could name one thousands of times."""
    seen: set[str] = set()
    for sample in samples:
        lidar = sample.get("lidar_points")
        files = [*([lidar["lidar_path"]] if lidar else []), *(view["img_path"] for view in sample["images"].values())]
        if not files:
            raise InvalidInputError(f"{name} describes a frame without images and without a sweep")
        for file in (Path(path).name for path in files):
            if file in seen:
                raise InvalidInputError(f"{name} names {file} twice; an image or a sweep belongs to one frame")
            seen.add(file)


def _check_unique_names(names: Sequence[str], info: str) -> None:
    """Raises ``InvalidInputError`` if two frames have the same name: one's result file would overwrite the other's."""
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise InvalidInputError(f"{info} has several frames named {repeated!r}; give each a unique token")


def frame_name(sample: dict[str, Any]) -> str:
    """The token of a key frame, or its number if it has none. Raises ``InvalidInputError`` if it cannot name a file."""
    return _file_name(str(sample.get("token", sample.get("sample_idx", "frame"))), "the token of a key frame")


def _file_name(name: str, source: str) -> str:
    """The name, checked for use in result file names. Raises ``InvalidInputError`` if it is a path or too long."""
    plain = name.isprintable() and not name.startswith(".") and not {"/", "\\"} & set(name)
    if not (plain and 0 < len(name.encode()) <= _MAX_NAME_BYTES):
        shown = f"{name[:40]}..." if len(name) > 40 else name
        raise InvalidInputError(
            f"{source} is {shown!r}; files are named after it: use up to {_MAX_NAME_BYTES} letters, digits, - and _"
        )
    return name


def class_names(content: dict[str, Any]) -> dict[int, str]:
    """The class names of an info file by their numbers."""
    return {int(number): str(name) for name, number in content["metainfo"]["categories"].items()}


def read_points(path: Path) -> Floats:
    """(N, 4) x, y, z, intensity in [0, 1] of the finite points, from five float32 columns; the ring is ignored."""
    content = path.read_bytes()
    if not content or len(content) % (4 * COLUMNS):
        raise InvalidInputError(
            f"{path.name} has {len(content)} bytes, not a multiple of 20 (x, y, z, intensity, ring)"
        )
    points = finite_points(np.frombuffer(content, "<f4").reshape(-1, COLUMNS).astype(np.float32), path.name)
    if np.abs(points[:, :3]).max() > 1000 or points[:, 3].min() < 0 or points[:, 3].max() > 255:
        raise InvalidInputError(
            f"{path.name} has points over 1 km away or an intensity outside [0, 255]; is it float32 x, y, z, "
            "intensity, ring in metres?"
        )
    rotated = points[:, :3].astype(np.float64) @ _TO_FRAME_AXES.T
    return np.concatenate([rotated, points[:, 3:4] / 255], axis=1).astype(np.float32)


def read_described(
    sample: dict[str, Any],
    names: Mapping[int, str],
    find: Callable[[str], Path],
    *,
    with_points: bool = True,
    with_images: bool = True,
    earlier: Callable[[Path], Floats] | None = None,
) -> Frame:
    """The frame of one description in the info layout; ``find`` returns the path of a file by the name in it.

    ``earlier`` reads the earlier sweeps; a sweep is skipped if ``find`` raises ``InvalidInputError`` for its file.
    """
    lidar = sample.get("lidar_points")
    points: Floats | None = None
    remarks: tuple[str, ...] = ()
    if lidar and with_points:
        sweep = find(lidar["lidar_path"])
        points = read_points(sweep)
        remarks = dropped_remarks(sweep.name, sweep.stat().st_size // (4 * COLUMNS), len(points))
    cameras = {}
    for name, view in sample["images"].items() if with_images else ():
        _file_name(name, "the name of a camera")
        transform = np.array(view["lidar2cam"], np.float64)
        if transform.shape != (4, 4):
            raise InvalidInputError(f"lidar2cam of {name} has the shape {transform.shape} instead of (4, 4)")
        transform[:3, :3] = transform[:3, :3] @ _TO_FRAME_AXES.T
        check_lidar_to_camera(transform, f"lidar2cam of {name}")
        intrinsics = np.array(view["cam2img"], np.float32)[:3, :3]
        if intrinsics.shape != (3, 3) or not np.isfinite(intrinsics).all() or intrinsics[0, 0] <= 0:
            raise InvalidInputError(f"cam2img of {name} is not a camera's projection")
        file = find(view["img_path"])
        pixels = read_image(file)
        remarks += resize_remarks(file.name, pixels.shape, intrinsics)
        cameras[name] = Camera(
            image_HWC=pixels,
            intrinsics=intrinsics,
            lidar_to_camera=transform.astype(np.float32),
        )
    instances = sample.get("instances")
    return Frame(
        name=frame_name(sample),
        points_lidar_m=points,
        cameras=cameras,
        truth=None if instances is None else _boxes(instances, names),
        time_ns=round(sample["timestamp"] * 1e6) * 1000 if "timestamp" in sample else None,
        earlier_sweeps=() if earlier is None else tuple(_earlier_sweeps(sample, find, earlier)),
        lidar_to_global=_to_global(sample),
        remarks=remarks,
    )


def _to_global(sample: dict[str, Any]) -> NDArray[np.float64] | None:
    """The pose (4, 4) of ``Frame``'s LiDAR frame in the global frame; None if the description has no valid pose."""
    ego_to_global, lidar_to_ego = sample.get("ego2global"), (sample.get("lidar_points") or {}).get("lidar2ego")
    if ego_to_global is None or lidar_to_ego is None:
        return None
    try:
        matrices = [np.array(matrix, np.float64).reshape(4, 4) for matrix in (ego_to_global, lidar_to_ego)]
        pose: NDArray[np.float64] = matrices[0] @ matrices[1]
        check_rigid(pose, "ego2global")
    except (ValueError, TypeError, InvalidInputError):
        return None
    pose[:3, :3] = pose[:3, :3] @ _TO_FRAME_AXES.T
    return pose


def _earlier_sweeps(
    sample: dict[str, Any], find: Callable[[str], Path], read_sweep: Callable[[Path], Floats]
) -> Iterator[EarlierSweep]:
    """The earlier sweeps of a key frame whose files exist, at most ``MAX_SWEEPS``, the latest first.

    ``lidar2sensor`` is used as the rigid transform that its name implies. The loader of mmdet3d 1.4 applies its
    translation without its rotation (open-mmlab/mmdetection3d, issue 3054), which differs when the vehicle turns.
    """
    rotation = np.eye(4)
    rotation[:3, :3] = _TO_FRAME_AXES
    for sweep in (sample.get("lidar_sweeps") or ())[:MAX_SWEEPS]:
        description = sweep["lidar_points"]
        try:
            file = find(description["lidar_path"])
        except InvalidInputError:
            continue
        to_sensor = np.array(description["lidar2sensor"], np.float64)
        if to_sensor.shape != (4, 4):
            raise InvalidInputError(f"lidar2sensor of {file.name} has the shape {to_sensor.shape} instead of (4, 4)")
        check_rigid(to_sensor, f"lidar2sensor of {file.name}")
        yield EarlierSweep(
            points_lidar_m=read_sweep(file),
            to_frame=rotation @ np.linalg.inv(to_sensor) @ rotation.T,
            seconds=float(sample["timestamp"]) - float(sweep["timestamp"]),
        )


def _boxes(instances: list[dict[str, Any]], names: Mapping[int, str]) -> Boxes3D:
    table = box_numbers([item["bbox_3d"][:7] for item in instances], "bbox_3d").reshape(-1, 7)
    return Boxes3D(
        centre_lidar_m=(table[:, :3] @ _TO_FRAME_AXES.T).astype(np.float32),
        size_m=table[:, 3:6].astype(np.float32),
        yaw=wrap_angle(table[:, 6] - np.pi / 2).astype(np.float32),
        names=tuple(item.get("name") or names.get(item["bbox_label_3d"], "other") for item in instances),
        point_counts=np.array([item.get("num_lidar_pts", -1) for item in instances], np.int64),
    )


def _file_beside(info: Path, name: str) -> Path:
    path = info.parent / Path(name).name
    if not path.is_file():
        raise InvalidInputError(f"{Path(name).name}, named in {info.name}, is not beside it")
    return path
