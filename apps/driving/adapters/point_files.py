"""Sweeps in files: KITTI's float32 x, y, z, intensity, NumPy arrays and PCD; of any sweep without its faulty points."""

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
"""Files of one sweep each, by their ending."""

_BIN_COLUMNS = (4, 5, 6)
"""How many float32 a point may have in a .bin: KITTI's four; with the ring or the time of the point behind them, as
mmdet3d's ``load_dim`` says it."""
_PLACE = ("x", "y", "z")
_COLUMNS = (*_PLACE, "intensity")
_MAX_COLUMNS = 32
"""An array with more has its points side by side."""
_INTENSITY = ("intensity", "i", "reflectivity", "remission", "scalar_intensity")
"""What PCD files and structured arrays call it, the usual name first."""
_MAX_INTENSITY, _FARTHEST_M = 255.0, 1000.0


def read_points(path: Path) -> Floats:
    """(N, 4) x, y, z in metres and intensity in [0, 1] of the finite points, see ``read_sweep``."""
    return read_sweep(path)[0]


def read_sweep(path: Path) -> tuple[Floats, tuple[str, ...]]:
    """(N, 4) x, y, z in metres and intensity in [0, 1] of the finite points of a sweep, and what is to be remarked.

    A .bin holds float32 x, y, z, intensity, and one or two columns more where its numbers make sense so alone; a .npy
    an array (N, 3 or more) whose columns begin so, or one with fields of these names; a .pcd has such fields.
    Intensity of 0 to 255 is scaled; in the two latter it is 0 where there is none. Raises ``InvalidInputError`` for
    truncated and otherwise laid out files.
    """
    kind = path.suffix.lower()
    if kind == ".pcd":
        columns, said = read_pcd(path, MAX_POINTS)
        points, remarks = sweep_of(columns, path.name)
        return points, said + remarks
    if kind != ".bin":
        return sweep_of(_array(path), path.name)
    whole, said = _bin(path)
    points, remarks = _near(whole, path.name)
    if points[:, 3].min() < 0 or points[:, 3].max() > _MAX_INTENSITY:
        raise InvalidInputError(
            f"{path.name}: the fourth column runs from {points[:, 3].min():.3g} to {points[:, 3].max():.3g}, but "
            "intensity lies in [0, 1] or [0, 255]; scale it, or check the number of columns (KITTI has four)"
        )
    return _scaled(points, path.name)[0], said + remarks


def sweep_of(columns: Mapping[str, NDArray[Any]], name: str) -> tuple[Floats, tuple[str, ...]]:
    """The sweep of columns by their names in small letters, of as many numbers each; otherwise as ``read_sweep``."""
    whole, without = _four_columns(columns, name)
    points, left_out = _near(whole, name)
    points, cut = _scaled(points, name)
    return points, left_out + without + cut


def _near(whole: Floats, name: str) -> tuple[Floats, tuple[str, ...]]:
    """The finite points (N, 4) away from the sensor, and remarks on others; refuses some farther than a LiDAR sees."""
    points = finite(whole, name)
    if np.abs(points[:, :3]).max() > _FARTHEST_M:
        raise InvalidInputError(f"{name} holds points over 1 km away; are x, y and z in metres?")
    remarks = dropped(name, len(whole), len(points))
    returned = points[:, :3].any(axis=1)
    if not returned.any():
        raise InvalidInputError(
            f"{name} holds {len(points)} points at (0, 0, 0), as beams without a return have it, and no other"
        )
    if not returned.all():
        remarks += (
            f"{(~returned).sum()} of the {len(whole)} points of {name} were left out: they lie at (0, 0, 0), as beams "
            "without a return.",
        )
        points = points[returned]
    return points, remarks


def _bin(path: Path) -> tuple[Floats, tuple[str, ...]]:
    """The first four columns (N, 4) of float32 numbers, and a remark where there are more."""
    content = path.read_bytes()
    if path.name.lower().endswith(".pcd.bin"):
        raise InvalidInputError(
            f"{path.name} is a sweep of nuScenes (x right, y ahead; five columns): name the folder with its "
            "sample.json, or write x = y, y = -x, z and intensity / 255 as float32 into a .bin"
        )
    if not content:
        raise InvalidInputError(f"{path.name} is empty; a LiDAR sweep holds 16 bytes a point")
    numbers = np.frombuffer(content, "<f4", count=len(content) // 4)
    fitting = [columns for columns in _BIN_COLUMNS if len(content) % (4 * columns) == 0]
    for columns in fitting:
        points = numbers.reshape(-1, columns)[:, :4].astype(np.float32)
        if _is_sweep(points):
            more = (
                f"{path.name} was read as {columns} columns: x, y, z, intensity, and {columns - 4} that are not used."
            )
            return points, () if columns == 4 else (more,)
    if _BIN_COLUMNS[0] in fitting:
        return numbers.reshape(-1, 4).astype(np.float32), ()
    hint = "five or six columns, which do not begin so" if fitting else "been truncated"
    raise InvalidInputError(
        f"{path.name} has {len(content)} bytes, not a multiple of 16 (float32 x, y, z, intensity). It may have {hint}."
    )


def _is_sweep(points_N4: Floats) -> bool:
    """Whether columns hold what they should; of points that are taken apart at another number of columns the fourth
    has coordinates, of which some are below 0."""
    with np.errstate(invalid="ignore"):
        known = points_N4[np.isfinite(points_N4).all(axis=1)]
        return len(known) > 0 and bool(
            np.abs(known[:, :3]).max() <= _FARTHEST_M and known[:, 3].min() >= 0 and known[:, 3].max() <= _MAX_INTENSITY
        )


def _array(path: Path) -> Mapping[str, NDArray[Any]]:
    """The columns of a NumPy array by name."""
    expected = "expected (N, 4) numbers x, y, z, intensity, as numpy.save writes them"
    try:
        with path.open("rb") as content:
            if content.read(6) != b"\x93NUMPY":  # archives of arrays and pickles begin otherwise
                raise ValueError
        # Mapped, so that the header's shape is held against the file's size before anything of that size is made.
        found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy raises whatever it meets in a damaged header
        raise InvalidInputError(f"{path.name} cannot be read as a NumPy array; {expected}") from error
    if found.ndim == 0 or not found.size:
        raise InvalidInputError(f"{path.name} holds no points; {expected}")
    names = found.dtype.names
    if names is None:
        if not (found.ndim == 2 and 3 <= found.shape[1] <= _MAX_COLUMNS and found.dtype.kind in "fiu"):
            raise InvalidInputError(f"{path.name} holds an array of {found.shape} {found.dtype}; {expected}")
        columns = {name: found[:, place] for place, name in enumerate(_COLUMNS[: found.shape[1]])}
    else:
        columns = {name.lower(): found[name] for name in names if _is_number(found.dtype[name])}
    if found.size // (1 if names else found.shape[1]) > MAX_POINTS:
        raise InvalidInputError(f"{path.name} holds more than {MAX_POINTS} points. Is it one sweep?")
    return columns


def _is_number(kind: np.dtype[Any]) -> bool:
    return kind.kind in "fiu" and not kind.shape


def _four_columns(columns: Mapping[str, NDArray[Any]], name: str) -> tuple[Floats, tuple[str, ...]]:
    """(N, 4) of columns by name, and a remark where an intensity is missing or is no number."""
    if missing := [field for field in _PLACE if field not in columns]:
        raise InvalidInputError(f"{name} has no field {missing[0]}; it has {', '.join(columns)[:200] or 'none'}")
    intensity = next((field for field in _INTENSITY if field in columns), None)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is dropped
        whole = np.zeros((columns["x"].size, 4), np.float32)
        for number, field in enumerate((*_PLACE, *([] if intensity is None else [intensity]))):
            whole[:, number] = columns[field].ravel()
    without = "0 is taken, which imported networks may not be used to."
    if intensity is None:
        return whole, (f"{name} has no intensity: {without}",)
    unknown = ~np.isfinite(whole[:, 3]) & np.isfinite(whole[:, :3]).all(axis=1)
    if unknown.any():
        whole[unknown, 3] = 0
        return whole, (f"The intensity of {unknown.sum()} points of {name} is no number: {without}",)
    return whole, ()


def _scaled(points: Floats, name: str) -> tuple[Floats, tuple[str, ...]]:
    """The points with intensity in [0, 1]: as it is, or taken as 0 to 255."""
    least, most = float(points[:, 3].min()), float(points[:, 3].max())
    if least >= 0 and most <= 1:
        return points, ()
    points = points.copy()
    points[:, 3] = np.clip(points[:, 3] / _MAX_INTENSITY, 0, 1)
    if least >= 0 and most <= _MAX_INTENSITY:
        return points, ()
    return points, (f"The intensity of {name} runs from {least:.3g} to {most:.3g}: it was cut to 0 to 255.",)


def finite(points: Floats, name: str) -> Floats:
    """The points (N, C) whose columns are finite numbers; refuses a sweep without any, and one that is too large."""
    if len(points) > MAX_POINTS:
        raise InvalidInputError(f"{name} holds {len(points)} points; at most {MAX_POINTS} are taken. Is it one sweep?")
    good = np.isfinite(points).all(axis=1)
    if not len(points):
        raise InvalidInputError(f"{name} holds no point")
    if not good.any():
        raise InvalidInputError(f"{name} holds {len(points)} points that are not finite numbers, and no other")
    return points if good.all() else points[good]


def dropped(name: str, count: int, kept: int) -> tuple[str, ...]:
    """The remark on a sweep of ``count`` points of which ``kept`` are finite; none where all are."""
    if kept == count:
        return ()
    return (f"{count - kept} of the {count} points of {name} were left out: they are not finite numbers.",)
