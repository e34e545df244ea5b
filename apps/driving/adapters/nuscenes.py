"""nuScenes key frames, described in OpenMMLab's info layout, read into ``Frame`` with six cameras.

nuScenes' LiDAR looks along its y axis (x right, y forward, z up; Caesar et al. 2020); ``Frame`` looks along x. Points,
boxes and calibrations are turned by a quarter on reading, and back on writing.
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
from apps.driving.adapters.calibration import refuse_mount, refuse_not_rigid
from apps.driving.adapters.image_files import read_image, resized
from apps.driving.adapters.nuscenes_tables import MAX_SWEEPS
from apps.driving.adapters.point_files import dropped, finite
from apps.driving.types import Boxes3D, Camera, EarlierSweep, Floats, Frame
from shared.errors import InvalidInputError

COLUMNS = 5
_LONGEST_NAME = 100
_TURN = np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]], np.float64)
"""nuScenes LiDAR to ``Frame``'s LiDAR frame."""


@dataclass(frozen=True, slots=True)
class Described:
    """The key frames that a ``sample.json`` describes: its path, the names of its classes, and a description each."""

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
        described = sample if labelled else {name: part for name, part in sample.items() if name != "instances"}
        with _in_info_layout(self.info):
            return read_described(
                described, self.classes, lambda name: _beside(self.info, name), with_images=images, earlier=earlier
            )


def read(path: Path) -> list[Frame]:
    """The key frames of a ``sample.json``, or of the folder that holds one."""
    found = describe(path)
    earlier = cache(read_points)  # frames share the sweeps before them
    return [found.read(sample, earlier=earlier) for sample in found.samples]


def describe(path: Path) -> Described:
    """What a ``sample.json``, or that of a folder, describes; no sweep and no image is read."""
    info = path / "sample.json" if path.is_dir() else path
    if not info.is_file():
        raise InvalidInputError(f"{path.name} holds no sample.json; a nuScenes key frame is described there")
    try:
        content = json.loads(info.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InvalidInputError(f"{info.name} is not JSON: {error}") from error
    if isinstance(content, list):
        raise InvalidInputError(
            f"{info.parent.name}/{info.name} is a table of nuScenes' own; the command line goes through the data set: "
            "trivium predict driving NUSCENES --each --out DIR"
        )
    with _in_info_layout(info):
        samples = content["data_list"]
        _refuse_repeats(samples, info.name)
        _refuse_same_names([name_of(sample) for sample in samples], info.name)
        return Described(info, class_names(content), samples)


@contextmanager
def _in_info_layout(info: Path) -> Iterator[None]:
    """Refuses what is not laid out as OpenMMLab's info files are, where it is read."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused
            yield
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise InvalidInputError(
            f"{info.name} is not in the info layout (metainfo.categories, data_list with images, lidar_points and "
            f"instances): {type(error).__name__} {error}"
        ) from error


def _refuse_repeats(samples: list[dict[str, Any]], name: str) -> None:
    """Refuses recordings that are named twice: a short file could have one read and looked at thousands of times."""
    named: set[str] = set()
    for sample in samples:
        lidar = sample.get("lidar_points")
        own = [*([lidar["lidar_path"]] if lidar else []), *(view["img_path"] for view in sample["images"].values())]
        if not own:
            raise InvalidInputError(f"{name} describes a frame without an image and without a sweep")
        for file in (Path(one).name for one in own):
            if file in named:
                raise InvalidInputError(f"{name} names {file} twice; an image or a sweep is of one frame")
            named.add(file)


def _refuse_same_names(names: Sequence[str], info: str) -> None:
    """Refuses two frames of one name: the result file of one would take the place of the other's."""
    if len(set(names)) < len(names):
        name = next(one for one in names if names.count(one) > 1)
        raise InvalidInputError(f"{info} has several frames called {name!r}; give each a token of its own")


def name_of(sample: dict[str, Any]) -> str:
    """The token of a described key frame, or its number where it has none. Refuses what cannot name a file."""
    return _file_name(str(sample.get("token", sample.get("sample_idx", "frame"))), "the token of a key frame")


def _file_name(name: str, what: str) -> str:
    """The name, after which files of the answer are called. Refuses one that would lead elsewhere or be too long."""
    plain = name.isprintable() and not name.startswith(".") and not {"/", "\\"} & set(name)
    if not (plain and 0 < len(name.encode()) <= _LONGEST_NAME):
        shown = f"{name[:40]}..." if len(name) > 40 else name
        raise InvalidInputError(
            f"{what} is {shown!r}; files are named after it: take up to {_LONGEST_NAME} letters, digits, - and _"
        )
    return name


def class_names(content: dict[str, Any]) -> dict[int, str]:
    """The names of an info file's classes by their numbers."""
    return {int(number): str(name) for name, number in content["metainfo"]["categories"].items()}


def read_points(path: Path) -> Floats:
    """(N, 4) x, y, z, intensity in [0, 1] of the finite points, from five float32 columns; the last is the ring."""
    content = path.read_bytes()
    if not content or len(content) % (4 * COLUMNS):
        raise InvalidInputError(
            f"{path.name} has {len(content)} bytes, not a multiple of 20 (x, y, z, intensity, ring)"
        )
    points = finite(np.frombuffer(content, "<f4").reshape(-1, COLUMNS).astype(np.float32), path.name)
    if np.abs(points[:, :3]).max() > 1000 or points[:, 3].min() < 0 or points[:, 3].max() > 255:
        raise InvalidInputError(
            f"{path.name} holds points over 1 km away or an intensity outside of [0, 255]; is it float32 x, y, z, "
            "intensity, ring in metres?"
        )
    turned = points[:, :3].astype(np.float64) @ _TURN.T
    return np.concatenate([turned, points[:, 3:4] / 255], axis=1).astype(np.float32)


def read_described(
    sample: dict[str, Any],
    names: Mapping[int, str],
    find: Callable[[str], Path],
    *,
    with_points: bool = True,
    with_images: bool = True,
    earlier: Callable[[Path], Floats] | None = None,
) -> Frame:
    """The frame of one description in the info layout; ``find`` gives the files that it names.

    ``earlier`` reads the sweeps before it; those whose files ``find`` refuses are left out.
    """
    lidar = sample.get("lidar_points")
    points: Floats | None = None
    remarks: tuple[str, ...] = ()
    if lidar and with_points:
        sweep = find(lidar["lidar_path"])
        points = read_points(sweep)
        remarks = dropped(sweep.name, sweep.stat().st_size // (4 * COLUMNS), len(points))
    cameras = {}
    for name, view in sample["images"].items() if with_images else ():
        _file_name(name, "the name of a camera")
        transform = np.array(view["lidar2cam"], np.float64)
        if transform.shape != (4, 4):
            raise InvalidInputError(f"lidar2cam of {name} has the shape {transform.shape} instead of (4, 4)")
        transform[:3, :3] = transform[:3, :3] @ _TURN.T
        refuse_mount(transform, f"lidar2cam of {name}")
        intrinsics = np.array(view["cam2img"], np.float32)[:3, :3]
        if intrinsics.shape != (3, 3) or not np.isfinite(intrinsics).all() or intrinsics[0, 0] <= 0:
            raise InvalidInputError(f"cam2img of {name} is not a camera's projection")
        file = find(view["img_path"])
        pixels = read_image(file)
        remarks += resized(file.name, pixels.shape, intrinsics)
        cameras[name] = Camera(
            image_HWC=pixels,
            intrinsics=intrinsics,
            lidar_to_camera=transform.astype(np.float32),
        )
    instances = sample.get("instances")
    return Frame(
        name=name_of(sample),
        points_lidar_m=points,
        cameras=cameras,
        truth=None if instances is None else _boxes(instances, names),
        time_ns=round(sample["timestamp"] * 1e6) * 1000 if "timestamp" in sample else None,
        earlier_sweeps=() if earlier is None else tuple(_earlier_sweeps(sample, find, earlier)),
        lidar_to_global=_to_global(sample),
        remarks=remarks,
    )


def _to_global(sample: dict[str, Any]) -> NDArray[np.float64] | None:
    """Where the LiDAR was (4, 4), from ``Frame``'s LiDAR frame; None where a description does not say so."""
    ego, mount = sample.get("ego2global"), (sample.get("lidar_points") or {}).get("lidar2ego")
    if ego is None or mount is None:
        return None
    try:
        pose: NDArray[np.float64] = np.array(ego, np.float64).reshape(4, 4) @ np.array(mount, np.float64).reshape(4, 4)
        refuse_not_rigid(pose, "ego2global")
    except (ValueError, TypeError, InvalidInputError):
        return None
    pose[:3, :3] = pose[:3, :3] @ _TURN.T
    return pose


def _earlier_sweeps(
    sample: dict[str, Any], find: Callable[[str], Path], read_sweep: Callable[[Path], Floats]
) -> Iterator[EarlierSweep]:
    """The sweeps before a key frame that there are files of, at most ``MAX_SWEEPS``, the latest first.

    ``lidar2sensor`` is taken as the rigid transform that its name says. The loader of mmdet3d 1.4 takes its translation
    without its rotation (open-mmlab/mmdetection3d, issue 3054), which differs where the vehicle turns.
    """
    turn = np.eye(4)
    turn[:3, :3] = _TURN
    for sweep in (sample.get("lidar_sweeps") or ())[:MAX_SWEEPS]:
        described = sweep["lidar_points"]
        try:
            file = find(described["lidar_path"])
        except InvalidInputError:
            continue
        to_sensor = np.array(described["lidar2sensor"], np.float64)
        if to_sensor.shape != (4, 4):
            raise InvalidInputError(f"lidar2sensor of {file.name} has the shape {to_sensor.shape} instead of (4, 4)")
        refuse_not_rigid(to_sensor, f"lidar2sensor of {file.name}")
        yield EarlierSweep(
            points_lidar_m=read_sweep(file),
            to_frame=turn @ np.linalg.inv(to_sensor) @ turn.T,
            seconds=float(sample["timestamp"]) - float(sweep["timestamp"]),
        )


def _boxes(instances: list[dict[str, Any]], names: Mapping[int, str]) -> Boxes3D:
    table = box_numbers([item["bbox_3d"][:7] for item in instances], "bbox_3d").reshape(-1, 7)
    yaw = table[:, 6] - np.pi / 2
    return Boxes3D(
        centre_lidar_m=(table[:, :3] @ _TURN.T).astype(np.float32),
        size_m=table[:, 3:6].astype(np.float32),
        yaw=((yaw + np.pi) % (2 * np.pi) - np.pi).astype(np.float32),
        names=tuple(item.get("name") or names.get(item["bbox_label_3d"], "other") for item in instances),
        point_counts=np.array([item.get("num_lidar_pts", -1) for item in instances], np.int64),
    )


def _beside(info: Path, name: str) -> Path:
    path = info.parent / Path(name).name
    if not path.is_file():
        raise InvalidInputError(f"{Path(name).name}, which {info.name} names, is not beside it")
    return path
