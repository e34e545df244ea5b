"""Plausibility checks of a sweep without labels: wrong unit, other axes, a sensor at another height."""

from __future__ import annotations

import numpy as np

from apps.driving.types import Floats, Frame, within

MIN_POINTS = 200
GROUND_RANGE_M = (-2.9, -0.9)
"""The plausible range of the ground's z: the networks were trained with a sensor 1.73 m (KITTI) or 1.84 m (nuScenes)
above the road, also on slopes."""
_FAR_M, _FLAT_TOLERANCE_M, _MAX_SIDE_RATIO = 15.0, 0.5, 2.0
"""A road continues ahead of the vehicle: beyond 15 m, six real and 25 synthetic sweeps all had at most 1.6 times as
many returns from flat ground within 30 degrees of the sideways axis as of the forward axis."""

_LEVEL_TOLERANCE_M, _MAX_TOP_RATIO = 0.3, 2.0
"""A road lies below the sensor: seven real and ten synthetic sweeps had at most 0.7 times as many returns this close to
the level that 90 % of the returns ahead are below as to the level that 10 % are below."""

_ROOF_HALF_SIDE_M, _MIN_ROOF_POINTS, _MAX_ROOF_WIDTH_RATIO = 1.2, 1000, 1.3
"""At least this many returns this close to the sensor come from the vehicle's own roof, which is longer than wide: in
nuScenes' sample their standard deviation is 1.8 times as large along the vehicle as across it. KITTI's and Argoverse
2's sweeps have no such returns."""


def missing_sweeps_remarks(frame: Frame, earlier_sweeps: int, model: str) -> list[str]:
    """A remark if the frame has fewer than the ``earlier_sweeps`` that ``model`` was trained on."""
    earlier = len(frame.earlier_sweeps)
    if earlier >= earlier_sweeps:
        return []
    available = "One sweep is" if not earlier else f"{earlier + 1} sweeps are"
    return [f"{available} used; {model} was trained on {earlier_sweeps + 1} together and finds fewer objects in fewer."]


def remarks(points_N4: Floats, range_m: tuple[float, ...], model: str) -> list[str]:
    """Remarks on a sweep that is implausible for ``model``, whose range is ``range_m`` (minima, then maxima of x, y, z,
    in metres)."""
    x, y, z = points_N4[:, :3].T
    count = int(within(points_N4, range_m).sum())
    if count < MIN_POINTS:
        x0, y0, z0, x1, y1, z1 = range_m
        return [
            f"Only {count} of the {len(points_N4)} points lie in the range of {model} (x {x0:g} to {x1:g} m, y {y0:g} "
            f"to {y1:g} m, z {z0:g} to {z1:g} m). Are they in metres, with x ahead and z up?"
        ]
    distance = np.hypot(x, y)
    near_z = z[(x > 0) & (distance > 4) & (distance < 25)]
    if len(near_z) < MIN_POINTS:
        return [f"Only {len(near_z)} points lie 4 to 25 m ahead. Are they in metres, with x ahead?"]
    low, high = np.quantile(near_z, (0.1, 0.9))
    at_low, at_high = (int((np.abs(near_z - level) < _LEVEL_TOLERANCE_M).sum()) for level in (low, high))
    if at_high > _MAX_TOP_RATIO * at_low:
        return [
            f"Flat ground seems to lie above the sensor: {at_high} returns ahead are near z = {high:.1f} m, and "
            f"{at_low} near z = {low:.1f} m. Is z up? If the sensor is mounted upside down, or its frame has z down, "
            "negate y and z."
        ]
    ground = float(np.quantile(near_z, 0.05))
    flat = (distance > _FAR_M) & (np.abs(z - low) < _FLAT_TOLERANCE_M)
    steepness = np.tan(np.deg2rad(30))
    along, across = (
        int((flat & (b < a * steepness)).sum()) for a, b in ((np.abs(x), np.abs(y)), (np.abs(y), np.abs(x)))
    )
    if not GROUND_RANGE_M[0] < ground < GROUND_RANGE_M[1]:
        return [
            f"The lowest points ahead lie at z = {ground:.1f} m, but {model} was trained with a sensor 1.7 to 1.9 m "
            "above the road. Is z up, and zero at the sensor? Shift the points, or do not rely on the boxes."
        ]
    on_roof = (np.abs(x) < _ROOF_HALF_SIDE_M) & (np.abs(y) < _ROOF_HALF_SIDE_M)
    if on_roof.sum() >= _MIN_ROOF_POINTS and y[on_roof].std() > _MAX_ROOF_WIDTH_RATIO * x[on_roof].std():
        return [
            f"The {int(on_roof.sum())} returns within {_ROOF_HALF_SIDE_M:g} m of the sensor, from the vehicle's own "
            "roof, spread more to the sides than ahead. Is x ahead and y to the left? Some sensors write x to the "
            "right and y ahead."
        ]
    if across > max(_MAX_SIDE_RATIO * along, MIN_POINTS):
        return [
            f"Flat ground extends to the sides ({across} returns beyond {_FAR_M:g} m) and not ahead ({along}), unlike "
            "a road. Is x ahead and y to the left? Some sensors write x to the right and y ahead."
        ]
    return []
