"""Argoverse 2 sensor logs (Wilson et al. 2021), read into ``Frame``: sweeps, ring cameras, annotations.

Layout of a log, as documented by av2-api: ``sensors/lidar/TIMESTAMP.feather`` with x, y, z in the vehicle frame and
intensity 0 to 255; ``sensors/cameras/NAME/TIMESTAMP.jpg``; ``annotations.feather`` with boxes in the vehicle frame at
a sweep's timestamp; ``calibration/egovehicle_SE3_sensor.feather`` and ``calibration/intrinsics.feather``. ``Frame``'s
LiDAR frame has the axes of the vehicle frame and its origin at the upper LiDAR, 1.6 m above the vehicle's origin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.driving.adapters.box_values import box_numbers
from apps.driving.adapters.calibration import check_lidar_to_camera
from apps.driving.adapters.image_files import read_image, resize_remarks
from apps.driving.adapters.nuscenes_tables import rotation_of
from apps.driving.adapters.point_files import dropped_remarks, finite_points
from apps.driving.types import Boxes3D, Camera, Floats, Frame
from shared.errors import InvalidInputError

LIDAR = "up_lidar"
MAX_TIME_DIFFERENCE_NS = 60_000_000
"""An image belongs to a sweep if their timestamps differ by at most this."""


def timestamps(log: Path) -> list[int]:
    """The sorted timestamps of a log's sweeps in nanoseconds."""
    return sorted(int(file.stem) for file in (log / "sensors" / "lidar").glob("*.feather") if file.stem.isdecimal())


def is_log(folder: Path) -> bool:
    """Whether a folder has the layout of a log."""
    return (folder / "sensors" / "lidar").is_dir()


def read(log: Path) -> list[Frame]:
    """All sweeps of a log, one frame each. Raises ``InvalidInputError``."""
    return [read_frame(log, timestamp_ns) for timestamp_ns in timestamps(log)]


def read_frame(
    log: Path, timestamp_ns: int, *, points: bool = True, images: bool = True, labelled: bool = True
) -> Frame:
    """One sweep with the nearest image of each ring camera, and with its boxes if the log is annotated and ``labelled``
    is set. Raises ``InvalidInputError``."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # values that are not finite are refused
            return _frame(log, timestamp_ns, points=points, images=images, labelled=labelled)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise InvalidInputError(
            f"{log.name} is not an Argoverse 2 log as av2-api describes it: {type(error).__name__} {str(error)[:200]}"
        ) from error


def _frame(log: Path, timestamp_ns: int, *, points: bool, images: bool, labelled: bool) -> Frame:
    poses = _sensors_to_vehicle(log)
    origin = poses[LIDAR][:3, 3]
    sweep, remarks = _sweep(log / "sensors" / "lidar" / f"{timestamp_ns}.feather", origin) if points else (None, ())
    cameras = _cameras(log, timestamp_ns, poses) if images else {}
    for name, camera in cameras.items():
        remarks += resize_remarks(f"{name} of {log.name}", camera.image_HWC.shape, camera.intrinsics)
    return Frame(
        name=str(timestamp_ns),
        points_lidar_m=sweep,
        cameras=cameras,
        truth=_boxes(log, timestamp_ns, origin) if labelled else None,
        time_ns=timestamp_ns,
        remarks=remarks,
    )


def _sweep(file: Path, origin: NDArray[np.float64]) -> tuple[Floats, tuple[str, ...]]:
    columns = _columns(file, ("x", "y", "z", "intensity"))
    all_points = np.stack([np.asarray(columns[name], np.float32) for name in ("x", "y", "z", "intensity")], axis=1)
    points = finite_points(all_points, file.name)
    if np.abs(points[:, :3]).max() > 1000:
        raise InvalidInputError(f"{file.name} has points over 1 km away; are they in metres?")
    points[:, :3] -= origin.astype(np.float32)
    points[:, 3] = np.clip(points[:, 3] / 255, 0, 1)
    return points, dropped_remarks(file.name, len(all_points), len(points))


def _boxes(log: Path, timestamp_ns: int, origin: NDArray[np.float64]) -> Boxes3D | None:
    file = log / "annotations.feather"
    if not file.is_file():
        return None
    table = _annotations(file, file.stat().st_mtime_ns)
    chosen = table["timestamp_ns"] == timestamp_ns

    def stacked(names: Sequence[str]) -> NDArray[np.float64]:
        return box_numbers(np.stack([table[name][chosen] for name in names], -1), file.name)

    heading = rotation_of(stacked(("qw", "qx", "qy", "qz")))
    return Boxes3D(
        centre_lidar_m=(stacked(("tx_m", "ty_m", "tz_m")) - origin).astype(np.float32),
        size_m=stacked(("length_m", "width_m", "height_m")).astype(np.float32),
        yaw=np.arctan2(heading[:, 1, 0], heading[:, 0, 0]).astype(np.float32),
        names=tuple(str(name).lower() for name in table["category"][chosen]),
        point_counts=box_numbers(table["num_interior_pts"][chosen], file.name).astype(np.int64),
    )


def _cameras(log: Path, timestamp_ns: int, poses: Mapping[str, NDArray[np.float64]]) -> dict[str, Camera]:
    """The nearest image of each ring camera; ``poses`` are those of all sensors in the vehicle frame."""
    folders = sorted((log / "sensors" / "cameras").glob("ring_*"))
    if not folders:
        return {}
    intrinsics = _columns(
        log / "calibration" / "intrinsics.feather", ("sensor_name", "fx_px", "fy_px", "cx_px", "cy_px")
    )
    focal = {
        str(name): np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float32)
        for name, fx, fy, cx, cy in zip(*intrinsics.values(), strict=True)
    }
    # Boxes and points are relative to the LiDAR's origin, and have the axes of the vehicle frame.
    to_vehicle = np.eye(4)
    to_vehicle[:3, 3] = poses[LIDAR][:3, 3]
    cameras = {}
    for folder in folders:
        images = sorted(folder.glob("*.jpg"), key=lambda file: abs(int(file.stem) - timestamp_ns))
        if not images or abs(int(images[0].stem) - timestamp_ns) > MAX_TIME_DIFFERENCE_NS or folder.name not in focal:
            continue
        lidar_to_camera = np.linalg.inv(poses[folder.name]) @ to_vehicle
        check_lidar_to_camera(lidar_to_camera, f"{folder.name} of {log.name}")
        cameras[folder.name] = Camera(
            image_HWC=read_image(images[0]),
            intrinsics=focal[folder.name],
            lidar_to_camera=lidar_to_camera.astype(np.float32),
        )
    return cameras


def _sensors_to_vehicle(log: Path) -> dict[str, NDArray[np.float64]]:
    """(4, 4) from each sensor's frame to the vehicle frame."""
    file = log / "calibration" / "egovehicle_SE3_sensor.feather"
    names = ("sensor_name", "qw", "qx", "qy", "qz", "tx_m", "ty_m", "tz_m")
    rows = _columns(file, names)
    found = {}
    for name, *pose in zip(*rows.values(), strict=True):
        transform = np.eye(4)
        transform[:3, :3] = rotation_of(np.array(pose[:4], np.float64))
        transform[:3, 3] = pose[4:]
        found[str(name)] = transform
    if LIDAR not in found:
        raise InvalidInputError(f"{file} has no sensor {LIDAR}; is it from an Argoverse 2 log?")
    return found


@lru_cache(maxsize=8)
def _annotations(file: Path, _: int) -> dict[str, NDArray[Any]]:
    sizes, place = ("length_m", "width_m", "height_m"), ("tx_m", "ty_m", "tz_m")
    return _columns(file, ("timestamp_ns", "category", *sizes, "qw", "qx", "qy", "qz", *place, "num_interior_pts"))


def _columns(file: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The columns of a feather file. Raises ``InvalidInputError`` if it is not one or lacks a column."""
    from pyarrow import ArrowException, feather

    try:
        table = feather.read_table(file, columns=list(names), memory_map=False)
        table.validate(full=True)  # Arrow reads texts at the offsets in the file, which may be outside of its memory
        return {name: table[name].to_numpy() for name in names}
    except (OSError, KeyError, ValueError, ArrowException) as error:
        raise InvalidInputError(
            f"{file} cannot be read as a feather table with {', '.join(names)}: {str(error)[:200]}"
        ) from error
