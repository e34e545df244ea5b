"""What a sweep's points say against it: a wrong unit, other axes, a sensor at another height. Without labels."""

from __future__ import annotations

import numpy as np

from apps.driving.types import Floats, Frame

FEWEST = 200
GROUND_M = (-2.9, -0.9)
"""Where the lowest points must lie for the networks: they learnt from a sensor 1.73 m (KITTI) or 1.84 m (nuScenes)
above the road, on slopes too."""


def too_few_sweeps(frame: Frame, earlier_sweeps: int, model: str) -> list[str]:
    """A sentence where ``model`` learnt from more sweeps before a frame's own than come with this one."""
    there = len(frame.earlier_sweeps)
    if there >= earlier_sweeps:
        return []
    seen = "One sweep is" if not there else f"{there + 1} sweeps are"
    return [f"{seen} seen; {model} learnt from {earlier_sweeps + 1} together, and finds less in fewer."]


def remarks(points_N4: Floats, range_m: tuple[float, ...], model: str) -> list[str]:
    """Sentences about a sweep that ``model``, which looks at ``range_m`` (x, y, z from and to), can hardly answer."""
    x, y, z = points_N4[:, :3].T
    x0, y0, z0, x1, y1, z1 = range_m
    count = int(((x >= x0) & (x < x1) & (y >= y0) & (y < y1) & (z >= z0) & (z < z1)).sum())
    if count < FEWEST:
        return [
            f"{count} of the {len(points_N4)} points lie where {model} looks (x {x0:g} to {x1:g} m, y {y0:g} to "
            f"{y1:g} m, z {z0:g} to {z1:g} m). Are they in metres, with x ahead and z up?"
        ]
    away = np.hypot(x, y)
    low = z[(x > 0) & (away > 4) & (away < 25)]
    if len(low) < FEWEST:
        return [f"Only {len(low)} points lie 4 to 25 m ahead. Are they in metres, with x ahead?"]
    ground = float(np.quantile(low, 0.05))
    if not GROUND_M[0] < ground < GROUND_M[1]:
        return [
            f"The lowest points ahead lie at z = {ground:.1f} m, but {model} learnt from a sensor 1.7 to 1.9 m above "
            "the road. Is z up, and zero at the sensor? Move the points, or take no count on what was found."
        ]
    return []
