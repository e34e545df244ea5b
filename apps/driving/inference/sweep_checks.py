"""What a sweep's points say against it: a wrong unit, other axes, a sensor at another height. Without labels."""

from __future__ import annotations

import numpy as np

from apps.driving.types import Floats, Frame

FEWEST = 200
GROUND_M = (-2.9, -0.9)
"""Where the lowest points must lie for the networks: they learnt from a sensor 1.73 m (KITTI) or 1.84 m (nuScenes)
above the road, on slopes too."""
_FAR_M, _FLAT_M, _MAX_ASIDE = 15.0, 0.5, 2.0
"""A road goes on ahead: of six real sweeps and 25 synthetic ones all had at most 1.6 times as many returns of flat
ground within 30 degrees of the sideways axis as of the forward one, beyond 15 m."""

_OWN_M, _OWN_POINTS, _ACROSS = 1.2, 1000, 1.3
"""Where so many returns lie so near, they are of the vehicle's own roof, which is longer than it is wide: 1.8 times as
spread in nuScenes' sample. KITTI's and Argoverse 2's sweeps have none."""


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
    flat = (away > _FAR_M) & (np.abs(z - float(np.quantile(low, 0.1))) < _FLAT_M)
    steepness = np.tan(np.deg2rad(30))
    along, across = (
        int((flat & (b < a * steepness)).sum()) for a, b in ((np.abs(x), np.abs(y)), (np.abs(y), np.abs(x)))
    )
    if not GROUND_M[0] < ground < GROUND_M[1]:
        return [
            f"The lowest points ahead lie at z = {ground:.1f} m, but {model} learnt from a sensor 1.7 to 1.9 m above "
            "the road. Is z up, and zero at the sensor? Move the points, or take no count on what was found."
        ]
    own = (np.abs(x) < _OWN_M) & (np.abs(y) < _OWN_M)
    if own.sum() >= _OWN_POINTS and y[own].std() > _ACROSS * x[own].std():
        return [
            f"The {int(own.sum())} returns within {_OWN_M:g} m of the sensor, of the vehicle's own roof, lie farther "
            "to the sides than ahead. Is x ahead and y to the left? Some sensors write x to the right and y ahead."
        ]
    if across > max(_MAX_ASIDE * along, FEWEST):
        return [
            f"Flat ground goes on to the sides ({across} returns beyond {_FAR_M:g} m) and not ahead ({along}), unlike "
            "a road. Is x ahead and y to the left? Some sensors write x to the right and y ahead."
        ]
    return []
