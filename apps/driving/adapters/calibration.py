"""KITTI's calibrations, in the spellings of its object, tracking, odometry and raw data, read into ``Calibration``.

Each gives the projection of camera 2, the rotation that rectifies, and the LiDAR's place: ``P2``, ``R0_rect`` and
``Tr_velo_to_cam`` for objects; ``R_rect`` and ``Tr_velo_cam``, without a colon, for tracking; ``P2`` and ``Tr``, which
is rectified already, for odometry; ``P_rect_02`` and ``R_rect_00`` in calib_cam_to_cam.txt with ``R`` and ``T`` in
calib_velo_to_cam.txt beside it for raw data (Geiger et al. 2013, "Vision meets robotics: the KITTI dataset").
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apps.driving.types import Floats
from shared.errors import InvalidInputError

STARTS = ("P2:", "P2 ", "P_rect_02:", "R0_rect", "R_rect", "Tr_velo", "Tr:")
"""How the lines begin by which a calibration is told from labels."""
RAW_MOUNTS = ("calib_velo_to_cam.txt", "calib_imu_to_velo.txt")
"""Files of raw data that accompany calib_cam_to_cam.txt."""
MAX_APART_M = 20.0
"""How far apart the LiDAR and a camera of one vehicle may be."""
_P2, _RECTIFY, _MOUNT = ("P2", "P_rect_02"), ("R0_rect", "R_rect", "R_rect_00"), ("Tr_velo_to_cam", "Tr_velo_cam")


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """``intrinsics`` (3, 3) of camera 2, the rigid ``lidar_to_camera`` (4, 4), and the labels' origin in its frame."""

    intrinsics: Floats
    lidar_to_camera: Floats
    reference_offset_m: Floats


def read_calibration(path: Path) -> Calibration:
    """Camera 2 and the LiDAR; refuses what lacks a row, or holds rows that are no projection and no rotations."""
    rows = _rows(path)
    projection = _matrix(path, rows, _P2, (3, 4))
    if "Tr" in rows:
        rectify, mount = np.eye(3), _matrix(path, rows, ("Tr",), (3, 4))
    elif "P_rect_02" in rows:
        rectify, beside = _matrix(path, rows, _RECTIFY, (3, 3)), path.with_name(RAW_MOUNTS[0])
        if not beside.is_file():
            raise InvalidInputError(f"{path.name} is that of raw data; {beside.name} has to lie beside it")
        others = _rows(beside)
        mount = np.hstack([_matrix(beside, others, ("R",), (3, 3)), _matrix(beside, others, ("T",), (3, 1))])
    else:
        rectify, mount = _matrix(path, rows, _RECTIFY, (3, 3)), _matrix(path, rows, _MOUNT, (3, 4))
    intrinsics = projection[:, :3]
    if abs(np.linalg.det(intrinsics)) < 1e-6 or intrinsics[0, 0] <= 0:
        raise InvalidInputError(f"{path.name}: P2 is not a camera's projection (focal length {intrinsics[0, 0]:g})")
    for name, rotation in (("R0_rect", rectify), ("Tr_velo_to_cam", mount[:, :3])):
        if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-2:
            raise InvalidInputError(f"{path.name}: the first three columns of {name} are not a rotation")
        if np.linalg.det(rotation) < 0:
            raise InvalidInputError(
                f"{path.name}: {name} is a reflection (determinant -1), not a rotation; check its signs"
            )
    offset = np.linalg.solve(intrinsics, projection[:, 3])
    transform = np.eye(4)
    transform[:3, :3] = rectify @ mount[:, :3]
    transform[:3, 3] = rectify @ mount[:, 3] + offset
    refuse_mount(transform, f"{path.name}: Tr_velo_to_cam")
    return Calibration(
        intrinsics=intrinsics.astype(np.float32),
        lidar_to_camera=transform.astype(np.float32),
        reference_offset_m=offset.astype(np.float32),
    )


def refuse_not_rigid(transform: np.ndarray, what: str) -> None:
    """Refuses a transform (3 or 4, 4) that is no rotation with a translation."""
    if not np.isfinite(transform).all():
        raise InvalidInputError(f"{what} holds numbers that are not finite")
    rotation = transform[:3, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-2 or np.linalg.det(rotation) < 0:
        raise InvalidInputError(f"{what}: its first three columns are not a rotation")


def refuse_mount(lidar_to_camera: np.ndarray, what: str) -> None:
    """Refuses what takes no LiDAR (z up) on a vehicle to a camera (y down) on it; boxes would be drawn anywhere."""
    refuse_not_rigid(lidar_to_camera, what)
    rotation = lidar_to_camera[:3, :3]
    # The camera's y axis points down, as the LiDAR's -z does: by less than 45 degrees they differ.
    if -rotation[1, 2] < np.sqrt(0.5):
        raise InvalidInputError(
            f"{what} lays the camera on its side or back; from the LiDAR (x ahead, y left, z up) to the camera (x "
            "right, y down, z ahead) it must turn up into -y. Is it the inverse, from the camera to the LiDAR?"
        )
    apart = float(np.linalg.norm(lidar_to_camera[:3, 3]))
    if apart > MAX_APART_M:
        raise InvalidInputError(f"{what} puts the camera {apart:.0f} m from the LiDAR; is it in metres?")


def lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank."""
    return [line for line in text_of(path).splitlines() if line.strip()]


def text_of(path: Path) -> str:
    """The content of a text file; refuses another."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path.name} is not text; a calibration or label file was expected") from error


def _rows(path: Path) -> dict[str, tuple[int, list[str]]]:
    """By name the number of the line and its words; tracking writes no colon after the name."""
    rows = {}
    for number, line in enumerate(lines(path), 1):
        name, *words = line.replace(":", " ", 1).split() or [""]
        rows[name] = number, words
    return rows


def _matrix(
    path: Path, rows: dict[str, tuple[int, list[str]]], names: tuple[str, ...], shape: tuple[int, int]
) -> np.ndarray:
    name = next((name for name in names if name in rows), None)
    if name is None:
        raise InvalidInputError(
            f"{path.name} {f'has no row {names[0]}' if rows else 'is empty'}; a KITTI calibration has P2, R0_rect and "
            "Tr_velo_to_cam"
        )
    number, words = rows[name]
    try:
        values = [float(word) for word in words]
    except ValueError as error:
        raise InvalidInputError(f"{path.name}, line {number}: {error}; expected `{name}:` and numbers") from error
    finite = int(np.isfinite(values).sum())
    if len(values) != shape[0] * shape[1] or finite < len(values):
        raise InvalidInputError(f"{path.name}: {name} needs {shape[0] * shape[1]} finite numbers, it has {finite}")
    return np.array(values, np.float64).reshape(shape)
