"""Sweeps as KITTI writes them: float32 x, y, z, intensity; and what is left of any sweep without its faulty points."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from apps.driving.types import Floats
from shared.errors import InvalidInputError

MOST_POINTS = 2_000_000
BYTES = 16
"""Of a point in KITTI's files."""


def read_points(path: Path) -> Floats:
    """(N, 4) x, y, z, intensity of the finite points; refuses truncated and otherwise laid out files."""
    content = path.read_bytes()
    if path.name.lower().endswith(".pcd.bin"):
        raise InvalidInputError(
            f"{path.name} is a sweep of nuScenes (x right, y ahead; five columns): name the folder with its "
            "sample.json, or write x = y, y = -x, z and intensity / 255 as float32 into a .bin"
        )
    if not content:
        raise InvalidInputError(f"{path.name} is empty; a LiDAR sweep holds 16 bytes a point")
    if len(content) % BYTES:
        hint = " It may have five columns, as nuScenes does." if len(content) % 20 == 0 else " It may be truncated."
        raise InvalidInputError(
            f"{path.name} has {len(content)} bytes, not a multiple of 16 (float32 x, y, z, intensity).{hint}"
        )
    points = finite(np.frombuffer(content, "<f4").reshape(-1, 4).astype(np.float32), path.name)
    if np.abs(points[:, :3]).max() > 1000:
        raise InvalidInputError(f"{path.name} holds points over 1 km away; is it float32 x, y, z, intensity in metres?")
    if points[:, 3].min() < 0 or points[:, 3].max() > 1.0001:
        raise InvalidInputError(
            f"{path.name}: the fourth column runs from {points[:, 3].min():.3g} to {points[:, 3].max():.3g}, but "
            "intensity lies in [0, 1]; scale it, or check the number of columns (KITTI has four)"
        )
    return points


def finite(points: Floats, name: str) -> Floats:
    """The points (N, C) whose columns are finite numbers; refuses a sweep without any, and one that is too large."""
    if len(points) > MOST_POINTS:
        raise InvalidInputError(f"{name} holds {len(points)} points; at most {MOST_POINTS} are taken. Is it one sweep?")
    good = np.isfinite(points).all(axis=1)
    if not good.any():
        raise InvalidInputError(f"{name} holds {len(points)} points that are not finite numbers, and no other")
    return points if good.all() else points[good]


def dropped(name: str, count: int, kept: int) -> tuple[str, ...]:
    """The remark on a sweep of ``count`` points of which ``kept`` are finite; none where all are."""
    if kept == count:
        return ()
    return (f"{count - kept} of the {count} points of {name} were left out: they are not finite numbers.",)
