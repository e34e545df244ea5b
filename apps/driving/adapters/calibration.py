"""Reads KITTI's calibration files, in the spellings of its object, tracking, odometry and raw data.

Each has the projection of camera 2, the rectifying rotation, and the LiDAR's pose: ``P2``, ``R0_rect`` and
``Tr_velo_to_cam`` for objects; ``R_rect`` and ``Tr_velo_cam``, without a colon, for tracking; ``P2`` and ``Tr``, which
is already rectified, for odometry; ``P_rect_02`` and ``R_rect_00`` in calib_cam_to_cam.txt with ``R`` and ``T`` in
calib_velo_to_cam.txt beside it for raw data (Geiger et al. 2013, "Vision meets robotics: the KITTI dataset").
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apps.driving.types import Floats
from shared.errors import InvalidInputError

CALIBRATION_LINE_STARTS = ("P2:", "P2 ", "P_rect_02:", "R0_rect", "R_rect", "Tr_velo", "Tr:")
"""Line prefixes that distinguish a calibration from labels."""
RAW_EXTRINSICS_FILES = ("calib_velo_to_cam.txt", "calib_imu_to_velo.txt")
"""The files of raw data that accompany calib_cam_to_cam.txt."""
MAX_LIDAR_CAMERA_DISTANCE_M = 20.0
"""The maximum distance between the LiDAR and a camera on one vehicle."""
_PROJECTION_ROWS, _RECTIFICATION_ROWS, _EXTRINSICS_ROWS = (
    ("P2", "P_rect_02"),
    ("R0_rect", "R_rect", "R_rect_00"),
    ("Tr_velo_to_cam", "Tr_velo_cam"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """``intrinsics`` (3, 3) of camera 2, the rigid ``lidar_to_camera`` (4, 4), and the label origin in camera 2."""

    intrinsics: Floats
    lidar_to_camera: Floats
    reference_offset_m: Floats


def read_calibration(path: Path) -> Calibration:
    """Camera 2 and the LiDAR. Raises ``InvalidInputError`` for a missing row, or an invalid projection or rotation."""
    rows = _rows(path)
    projection = _matrix(path, rows, _PROJECTION_ROWS, (3, 4))
    if "Tr" in rows:
        rectification, velo_to_cam = np.eye(3), _matrix(path, rows, ("Tr",), (3, 4))
    elif "P_rect_02" in rows:
        rectification = _matrix(path, rows, _RECTIFICATION_ROWS, (3, 3))
        beside = path.with_name(RAW_EXTRINSICS_FILES[0])
        if not beside.is_file():
            raise InvalidInputError(f"{path.name} is a raw-data calibration; put {beside.name} beside it")
        extrinsics = _rows(beside)
        velo_to_cam = np.hstack(
            [_matrix(beside, extrinsics, ("R",), (3, 3)), _matrix(beside, extrinsics, ("T",), (3, 1))]
        )
    else:
        rectification = _matrix(path, rows, _RECTIFICATION_ROWS, (3, 3))
        velo_to_cam = _matrix(path, rows, _EXTRINSICS_ROWS, (3, 4))
    intrinsics = projection[:, :3]
    if abs(np.linalg.det(intrinsics)) < 1e-6 or intrinsics[0, 0] <= 0:
        raise InvalidInputError(f"{path.name}: P2 is not a camera projection (focal length {intrinsics[0, 0]:g})")
    for name, rotation in (("R0_rect", rectification), ("Tr_velo_to_cam", velo_to_cam[:, :3])):
        if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-2:
            raise InvalidInputError(f"{path.name}: the first three columns of {name} are not a rotation")
        if np.linalg.det(rotation) < 0:
            raise InvalidInputError(
                f"{path.name}: {name} is a reflection (determinant -1), not a rotation; check its signs"
            )
    offset = np.linalg.solve(intrinsics, projection[:, 3])
    transform = np.eye(4)
    transform[:3, :3] = rectification @ velo_to_cam[:, :3]
    transform[:3, 3] = rectification @ velo_to_cam[:, 3] + offset
    check_lidar_to_camera(transform, f"{path.name}: Tr_velo_to_cam")
    return Calibration(
        intrinsics=intrinsics.astype(np.float32),
        lidar_to_camera=transform.astype(np.float32),
        reference_offset_m=offset.astype(np.float32),
    )


def check_rigid(transform: np.ndarray, source: str) -> None:
    """Raises ``InvalidInputError`` if a transform (3 or 4, 4) is not a rotation and a translation."""
    if not np.isfinite(transform).all():
        raise InvalidInputError(f"{source} has numbers that are not finite")
    rotation = transform[:3, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-2 or np.linalg.det(rotation) < 0:
        raise InvalidInputError(f"{source}: its first three columns are not a rotation")


def check_lidar_to_camera(lidar_to_camera: np.ndarray, source: str) -> None:
    """Raises ``InvalidInputError`` if the transform (4, 4) does not lead from a LiDAR (z up) to a camera (y down) on
    the same vehicle. With such a transform, boxes would be drawn in wrong places."""
    check_rigid(lidar_to_camera, source)
    rotation = lidar_to_camera[:3, :3]
    # The camera's y axis must be within 45 degrees of the LiDAR's -z axis: both point down.
    if -rotation[1, 2] < np.sqrt(0.5):
        raise InvalidInputError(
            f"{source} puts the camera on its side or upside down; it must map the LiDAR frame (x forward, y left, z "
            "up) to the camera frame (x right, y down, z forward). Is it the inverse, from the camera to the LiDAR?"
        )
    distance = float(np.linalg.norm(lidar_to_camera[:3, 3]))
    if distance > MAX_LIDAR_CAMERA_DISTANCE_M:
        raise InvalidInputError(f"{source} puts the camera {distance:.0f} m from the LiDAR; is it in metres?")


def nonblank_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank."""
    return [line for line in read_text_file(path).splitlines() if line.strip()]


def read_text_file(path: Path) -> str:
    """The content of a UTF-8 text file. Raises ``InvalidInputError`` if it is not text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path.name} is not a text file; expected a calibration or label file") from error


def _rows(path: Path) -> dict[str, tuple[int, list[str]]]:
    """For each row name, its line number and its values; tracking files have no colon after the name."""
    rows = {}
    for number, line in enumerate(nonblank_lines(path), 1):
        name, *words = line.replace(":", " ", 1).split() or [""]
        rows[name] = number, words
    return rows


def _matrix(
    path: Path, rows: dict[str, tuple[int, list[str]]], names: tuple[str, ...], shape: tuple[int, int]
) -> np.ndarray:
    name = next((name for name in names if name in rows), None)
    if name is None:
        raise InvalidInputError(
            f"{path.name} {f'has no row {names[0]}' if rows else 'is empty'}; a KITTI calibration needs P2, R0_rect "
            "and Tr_velo_to_cam"
        )
    number, words = rows[name]
    try:
        values = [float(word) for word in words]
    except ValueError as error:
        raise InvalidInputError(f"{path.name}, line {number}: {error}; expected `{name}:` and then numbers") from error
    finite = int(np.isfinite(values).sum())
    if len(values) != shape[0] * shape[1] or finite < len(values):
        raise InvalidInputError(f"{path.name}: {name} needs {shape[0] * shape[1]} finite numbers but has {finite}")
    return np.array(values, np.float64).reshape(shape)
