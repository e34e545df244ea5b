"""Reads sweeps from files: KITTI's float32 x, y, z, intensity, NumPy arrays and PCD. Drops the invalid points."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.driving.adapters.pcd import read_pcd
from apps.driving.types import Floats
from shared.errors import InvalidInputError

MAX_POINTS = 2_000_000
SWEEPS = (".bin", ".pcd", ".npy")
"""The suffixes of files with one sweep each."""

_BIN_COLUMN_COUNTS = (4, 5, 6)
"""The numbers of float32 columns accepted in a .bin: KITTI's four, or also the ring or the time of each point, as given
by mmdet3d's ``load_dim``."""
_POSITION = ("x", "y", "z")
_COLUMNS = (*_POSITION, "intensity")
_MAX_COLUMNS = 32
"""An array with more columns is refused; it probably has its points in columns instead of rows."""
_REFLECTIVITY = "reflectivity"
_INTENSITY_NAMES = ("intensity", "i", _REFLECTIVITY, "remission", "scalar_intensity")
"""Names of the intensity in PCD files and structured arrays, the most common first."""
_MAX_INTENSITY, _MAX_DISTANCE_M = 255.0, 1000.0


def read_points(path: Path) -> Floats:
    """(N, 4) x, y, z in metres and intensity in [0, 1] of the finite points; see ``read_sweep``."""
    return read_sweep(path)[0]


def read_sweep(path: Path) -> tuple[Floats, tuple[str, ...]]:
    """(N, 4) x, y, z in metres and intensity in [0, 1] of the finite points of a sweep, and remarks.

    A .bin holds float32 x, y, z, intensity, and one or two more columns if only that layout gives plausible numbers; a
    .npy holds an array (N, 3 or more) with columns in this order, or with fields of these names; a .pcd has such
    fields. Intensity of 0 to 255 is scaled; a .npy or .pcd without it gets 0. Raises ``InvalidInputError`` for
    truncated files and other layouts.
    """
    kind = path.suffix.lower()
    if kind == ".pcd":
        columns, remarks = read_pcd(path, MAX_POINTS)
        points, more_remarks = sweep_of(columns, path.name)
        return points, more_remarks + remarks
    if kind != ".bin":
        return sweep_of(_read_array(path), path.name)
    all_points, remarks = _read_bin(path)
    points, more_remarks = _plausible_points(all_points, path.name)
    if points[:, 3].min() < 0 or points[:, 3].max() > _MAX_INTENSITY:
        raise InvalidInputError(
            f"{path.name}: the fourth column ranges from {points[:, 3].min():.3g} to {points[:, 3].max():.3g}, but "
            "intensity must be in [0, 1] or [0, 255]; scale it, or check the number of columns (KITTI has four)"
        )
    return _scaled(points, path.name)[0], remarks + more_remarks


def sweep_of(columns: Mapping[str, NDArray[Any]], name: str) -> tuple[Floats, tuple[str, ...]]:
    """The sweep from columns of equal length by lower-case name; otherwise as ``read_sweep``."""
    all_points, intensity_remarks = _points_from_columns(columns, name)
    points, point_remarks = _plausible_points(all_points, name)
    points, clip_remarks = _scaled(points, name)
    return points, point_remarks + intensity_remarks + clip_remarks


def _plausible_points(all_points: Floats, name: str) -> tuple[Floats, tuple[str, ...]]:
    """The finite points (N, 4) that are not at the origin, and remarks on the others. Raises ``InvalidInputError`` if a
    point is farther than a LiDAR can see."""
    points = finite_points(all_points, name)
    if np.abs(points[:, :3]).max() > _MAX_DISTANCE_M:
        raise InvalidInputError(f"{name} has points over 1 km away; are x, y and z in metres?")
    remarks = dropped_remarks(name, len(all_points), len(points))
    returned = points[:, :3].any(axis=1)
    if not returned.any():
        raise InvalidInputError(
            f"{name} has {len(points)} points, all at (0, 0, 0), the value of beams without a return"
        )
    if not returned.all():
        remarks += (
            f"{(~returned).sum()} of the {len(all_points)} points of {name} were dropped: they are at (0, 0, 0), the "
            "value of beams without a return.",
        )
        points = points[returned]
    return points, remarks


def _read_bin(path: Path) -> tuple[Floats, tuple[str, ...]]:
    """The first four columns (N, 4) of float32 numbers, and a remark if there are more."""
    content = path.read_bytes()
    if path.name.lower().endswith(".pcd.bin"):
        raise InvalidInputError(
            f"{path.name} is a nuScenes sweep (x right, y forward; five columns); give the folder with its "
            "sample.json, or write x = y, y = -x, z and intensity / 255 as float32 into a .bin"
        )
    if not content:
        raise InvalidInputError(f"{path.name} is empty; a LiDAR sweep has 16 bytes per point")
    numbers = np.frombuffer(content, "<f4", count=len(content) // 4)
    fitting = [columns for columns in _BIN_COLUMN_COUNTS if len(content) % (4 * columns) == 0]
    for columns in fitting:
        points = numbers.reshape(-1, columns)[:, :4].astype(np.float32)
        if _is_sweep(points):
            remark = (
                f"{path.name} was read as {columns} columns: x, y, z, intensity, and {columns - 4} that are not used."
            )
            return points, () if columns == 4 else (remark,)
    if _BIN_COLUMN_COUNTS[0] in fitting:
        return numbers.reshape(-1, 4).astype(np.float32), ()
    hint = "have five or six columns in another order" if fitting else "be truncated"
    raise InvalidInputError(
        f"{path.name} has {len(content)} bytes, not a multiple of 16 (float32 x, y, z, intensity). It may {hint}."
    )


def _is_sweep(points_N4: Floats) -> bool:
    """Whether the columns have plausible values. With the wrong number of columns, the fourth has coordinates, some of
    them negative."""
    with np.errstate(invalid="ignore"):
        known = points_N4[np.isfinite(points_N4).all(axis=1)]
        return len(known) > 0 and bool(
            np.abs(known[:, :3]).max() <= _MAX_DISTANCE_M
            and known[:, 3].min() >= 0
            and known[:, 3].max() <= _MAX_INTENSITY
        )


def _read_array(path: Path) -> Mapping[str, NDArray[Any]]:
    """The columns of a NumPy array by name."""
    expected = "expected (N, 4) numbers x, y, z, intensity, as numpy.save writes them"
    try:
        with path.open("rb") as content:
            if content.read(6) != b"\x93NUMPY":  # archives of arrays and pickles begin differently
                raise ValueError
        # Memory-mapped, so the shape in the header is checked against the file size before anything is allocated.
        found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy raises various exceptions for a damaged header
        raise InvalidInputError(f"{path.name} cannot be read as a NumPy array; {expected}") from error
    if found.ndim == 0 or not found.size:
        raise InvalidInputError(f"{path.name} has no points; {expected}")
    names = found.dtype.names
    if names is None:
        if not (found.ndim == 2 and 3 <= found.shape[1] <= _MAX_COLUMNS and found.dtype.kind in "fiu"):
            raise InvalidInputError(f"{path.name} has an array of {found.shape} {found.dtype}; {expected}")
        columns = {name: found[:, index] for index, name in enumerate(_COLUMNS[: found.shape[1]])}
    else:
        columns = {name.lower(): found[name] for name in names if _is_number(found.dtype[name])}
    if found.size // (1 if names else found.shape[1]) > MAX_POINTS:
        raise InvalidInputError(f"{path.name} has more than {MAX_POINTS} points. Is it a single sweep?")
    return columns


def _is_number(kind: np.dtype[Any]) -> bool:
    return kind.kind in "fiu" and not kind.shape


def _points_from_columns(columns: Mapping[str, NDArray[Any]], name: str) -> tuple[Floats, tuple[str, ...]]:
    """(N, 4) from columns by name, and remarks if the intensity is missing, not a number, or replaced."""
    if missing := [field for field in _POSITION if field not in columns]:
        raise InvalidInputError(f"{name} has no field {missing[0]}; it has {', '.join(columns)[:200] or 'none'}")
    intensity = next((field for field in _INTENSITY_NAMES if field in columns), None)
    remarks: tuple[str, ...] = ()
    if intensity is not None and _is_photon_count(columns, intensity):
        remarks = (
            f"The intensity of {name} goes beyond {_MAX_INTENSITY:.0f}, as Ouster's photon counts do: its reflectivity "
            "is used instead.",
        )
        intensity = _REFLECTIVITY
    with np.errstate(over="ignore", invalid="ignore"):  # values that are not finite are dropped later
        all_points = np.zeros((columns["x"].size, 4), np.float32)
        for number, field in enumerate((*_POSITION, *([] if intensity is None else [intensity]))):
            all_points[:, number] = columns[field].ravel()
    consequence = "0 is used, which imported networks may not be trained for."
    if intensity is None:
        return all_points, (f"{name} has no intensity: {consequence}",)
    unknown = ~np.isfinite(all_points[:, 3]) & np.isfinite(all_points[:, :3]).all(axis=1)
    if unknown.any():
        all_points[unknown, 3] = 0
        return all_points, (
            *remarks,
            f"The {intensity} of {unknown.sum()} points of {name} is not a number: {consequence}",
        )
    return all_points, remarks


def _is_photon_count(columns: Mapping[str, NDArray[Any]], intensity: str) -> bool:
    """Whether the intensity exceeds 255 and the calibrated reflectivity, which Ouster's driver writes too, does not."""
    if _REFLECTIVITY not in columns or intensity == _REFLECTIVITY or not columns[intensity].size:
        return False
    largest = [float(np.nanmax(columns[field].astype(np.float64), initial=0)) for field in (intensity, _REFLECTIVITY)]
    return largest[1] <= _MAX_INTENSITY < largest[0]


def _scaled(points: Floats, name: str) -> tuple[Floats, tuple[str, ...]]:
    """The points with intensity in [0, 1]: unchanged, or scaled from 0 to 255."""
    lowest, highest = float(points[:, 3].min()), float(points[:, 3].max())
    if lowest >= 0 and highest <= 1:
        return points, ()
    points = points.copy()
    points[:, 3] = np.clip(points[:, 3] / _MAX_INTENSITY, 0, 1)
    if lowest >= 0 and highest <= _MAX_INTENSITY:
        return points, ()
    return points, (f"The intensity of {name} ranges from {lowest:.3g} to {highest:.3g}: it was clipped to 0 to 255.",)


def finite_points(points: Floats, name: str) -> Floats:
    """The points (N, C) with finite numbers only. Raises ``InvalidInputError`` if there are none or too many."""
    if len(points) > MAX_POINTS:
        raise InvalidInputError(
            f"{name} has {len(points)} points; at most {MAX_POINTS} are accepted. Is it a single sweep?"
        )
    is_finite = np.isfinite(points).all(axis=1)
    if not len(points):
        raise InvalidInputError(f"{name} has no points")
    if not is_finite.any():
        raise InvalidInputError(f"{name} has {len(points)} points, and all of them have numbers that are not finite")
    return points if is_finite.all() else points[is_finite]


def dropped_remarks(name: str, count: int, kept: int) -> tuple[str, ...]:
    """A remark if only ``kept`` of the ``count`` points of a sweep are finite, else an empty tuple."""
    if kept == count:
        return ()
    return (f"{count - kept} of the {count} points of {name} were dropped: they are not finite numbers.",)
