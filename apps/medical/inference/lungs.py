"""Where the lungs are: air inside the body, found on a coarse grid in a fraction of a second.

Not all air is lung: stomach, bowel, trachea and bronchi hold gas, which is as dark as air can be and, within a slice, a
piece of its own. The detector looks at the lungs' box alone, and a finding that is not at a lung is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from apps.medical.inference.grid import triple
from apps.medical.types import CTVolume, Float64

COARSE_MM = 2.5
AIR_HU = -400
MIN_ML = 60.0
"""Less aerated lung than this in a scan is taken for gas elsewhere."""

MIN_DEEP_ML = 5.0
"""Of which at least so much lies two coarse voxels from its surface."""

GAS_HU = -940
"""Gas of the gut is darker than this; lung is not, but for severe emphysema."""

AIRWAY_HU, AIRWAY_MM2 = -930, 800.0
"""A piece of air in a slice that is darker and smaller than these is an airway or a loop of bowel."""

BUBBLE_HU, BUBBLE_MM2 = -955, 8000.0
"""The same of the stomach's bubble and the colon; a slice through both lungs is larger."""

GAS_NEAR_MM, LUNG_NEAR_MM = 8.0, 4.0
"""What is so near to such gas, and not so near to lung, is not searched."""

ROOM_HU = -970
"""The air of the room is darker than this, near -1000; emphysema that fills most of a lung is still denser."""

SMALL_ML = 400.0
"""Less air than this in one piece may be gas alone."""

NEAR_MM = 14.0
BODY_CUT_MM = 20.0
"""Where the body reaches the image's front or back in so much of a slice, it is cut off there."""

MIN_CUT_MM2 = 1500.0
"""More lung than this at an end or at the sides of the image is lung cut off; the trachea is smaller."""


@dataclass(frozen=True, slots=True)
class Lungs:
    """Aerated lung in a volume.

    near_zyx  what lies within ``NEAR_MM`` of aerated lung (as a box around each voxel), every ``steps`` voxel along
              i, j, k of the volume, from ``first`` on
    low_ijk, high_ijk  the lungs' box with that margin, in indices of the volume; high is exclusive
    millilitres        volume of aerated lung
    cut                whether aerated lung reaches the image's edge: the first slice, the last, or the sides
    """

    near_zyx: NDArray[np.bool_]
    first: tuple[int, int, int]
    steps: tuple[int, int, int]
    low_ijk: tuple[int, int, int]
    high_ijk: tuple[int, int, int]
    millilitres: float
    cut: bool

    def contain(self, index_ijk: Float64) -> NDArray[np.bool_]:
        """Which of the indices (n, 3) lie near a lung."""
        coarse = np.rint((np.asarray(index_ijk) - self.first) / self.steps).astype(int)
        limits = np.array(self.near_zyx.shape[::-1]) - 1
        i, j, k = np.clip(coarse, 0, limits).T
        return np.asarray(self.near_zyx[k, j, i])


def find_lungs(volume: CTVolume) -> Lungs | None:
    """The lungs in ``volume``, or None where there is no aerated lung to speak of.

    Rather too much than too little: what is left out here is never searched.
    """
    steps = triple(max(1, int(COARSE_MM / spacing)) for spacing in volume.spacing_mm)
    first = _first(volume, steps)
    coarse = volume.voxels_zyx[tuple(slice(first[n], None, steps[n]) for n in (2, 1, 0))]
    spacing = np.array(volume.spacing_mm) * steps
    voxel_ml = float(np.prod(spacing)) / 1000
    body_axis = 2 - _body_axis(volume)
    air, edge = _air_in_the_body(coarse, spacing, body_axis, 2 - int(np.argmax(np.abs(volume.direction[1]))))
    labels, count = ndimage.label(air)
    millilitres = np.bincount(labels.ravel(), minlength=count + 1) * voxel_ml
    # A thin layer of air along the skin has no depth.
    deep = ndimage.binary_erosion(air, _within_slices(body_axis), iterations=2)
    depth = np.bincount(labels[deep], minlength=count + 1) * voxel_ml
    gas = _gas(coarse, air, spacing, body_axis)
    kept = (millilitres >= MIN_ML) & (depth >= MIN_DEEP_ML)
    kept[0] = False
    # A collapsed lung is as dense as the other or denser; gas of the stomach is not.
    small = np.nonzero(kept & (millilitres < max(0.15 * millilitres[kept].max(initial=0), SMALL_ML)))[0]
    kept[small] = _medians(coarse, labels, small) >= GAS_HU
    # Most of a lung is no gas by its slices either.
    kept &= np.bincount(labels[gas], minlength=count + 1) < 0.5 * np.bincount(labels.ravel(), minlength=count + 1)
    if not kept.any():
        return None
    near = kept[labels] & ~gas
    aerated = float(near.sum()) * voxel_ml
    faces = np.prod(spacing) / spacing[::-1]
    ends = [near.take(end, axis=body_axis).sum() * faces[body_axis] for end in (0, -1)]
    sides = (near & edge).sum() * max(faces[axis] for axis in range(3) if axis != body_axis)
    cut = max(*ends, sides) > MIN_CUT_MM2
    gas |= air & ~near
    at_gas = _grown(gas, spacing, GAS_NEAR_MM) & ~_grown(near, spacing, LUNG_NEAR_MM)
    near = _grown(near, spacing, NEAR_MM) & ~at_gas
    low, high = [], []
    for axis, start, step, size in zip((2, 1, 0), first, steps, volume.size_ijk, strict=True):
        present = np.nonzero(near.any(axis=tuple({0, 1, 2} - {axis})))[0]
        low.append(start + int(present[0]) * step if present[0] else 0)
        high.append(min(size, start + (int(present[-1]) + 1) * step))
    return Lungs(near, first, steps, triple(low), triple(high), aerated, bool(cut))


def _gas(coarse: NDArray[np.int16], air: NDArray[np.bool_], spacing_mm: Float64, body_axis: int) -> NDArray[np.bool_]:
    """Air that is no lung, by the darkness and the size of its pieces in each slice across the body."""
    pieces, count = ndimage.label(air, _within_slices(body_axis))
    if not count:
        return np.zeros(air.shape, bool)
    area = float(np.prod(spacing_mm) / spacing_mm[2 - body_axis])
    sizes = np.bincount(pieces.ravel(), minlength=count + 1) * area
    sizes[0] = np.inf
    asked = np.nonzero(sizes < BUBBLE_MM2)[0]
    medians = np.full(count + 1, 0.0)
    medians[asked] = _medians(coarse, pieces, asked)
    airway = (sizes < AIRWAY_MM2) & (medians < AIRWAY_HU)
    bubble = (sizes < BUBBLE_MM2) & (medians < BUBBLE_HU)
    return np.asarray((airway | bubble)[pieces])


def _grown(mask: NDArray[np.bool_], spacing_mm: Float64, reach_mm: float) -> NDArray[np.bool_]:
    """The mask (z, y, x) and a box around each of its voxels."""
    for axis, along in zip((2, 1, 0), spacing_mm, strict=True):
        mask = ndimage.maximum_filter1d(mask, 2 * int(np.ceil(reach_mm / along)) + 1, axis=axis)
    return mask


def _first(volume: CTVolume, steps: tuple[int, int, int]) -> tuple[int, int, int]:
    """Where every so many voxels are taken from: at fixed places in space, whatever margin was cut off."""
    along = np.array(volume.origin_lps_mm) @ volume.direction / volume.spacing_mm
    first = [int(-np.floor(at + 0.51) % step) for at, step in zip(along, steps, strict=True)]
    return (first[0], first[1], first[2])


def _air_in_the_body(
    coarse: NDArray[np.int16], spacing_mm: Float64, body_axis: int, back_axis: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Air that is not around the body, and where the image ends, within its slices: (z, y, x) each.

    Room air is found slice by slice, so that lung which is open to it in one of them (a trachea, a wall beyond the
    field of view) is lost there alone. Lung that touches the edge lies between the front of the body and its back,
    and is denser than the air of the room.
    """
    flat = _within_slices(body_axis)
    edge = np.zeros(coarse.shape, bool)
    for axis in {0, 1, 2} - {body_axis}:
        for end in (0, -1):
            edge[(slice(None),) * axis + (end,)] = True
    # What a scanner fills in beyond a round field of view has one value, as low as any.
    least = coarse.min()
    filled, _ = ndimage.label((coarse == least) & (least < GAS_HU), flat)
    padding = np.isin(filled, np.setdiff1d(filled[edge], 0))
    edge |= ndimage.binary_dilation(padding, flat)
    air = (coarse < AIR_HU) & ~padding
    regions, _ = ndimage.label(air, flat)
    touching = np.setdiff1d(regions[edge], 0)
    body = _largest(coarse >= AIR_HU, flat)
    to_back = _ahead(body, padding, body_axis, back_axis, spacing_mm)
    to_front = _ahead(np.flip(body, back_axis), np.flip(padding, back_axis), body_axis, back_axis, spacing_mm)
    between = to_back & np.flip(to_front, back_axis)
    inside = np.bincount(regions[between], minlength=regions.max() + 1)
    mostly_inside = inside[touching] > 0.5 * np.bincount(regions.ravel())[touching]
    room = touching[~mostly_inside | (_medians(coarse, regions, touching) < ROOM_HU)]
    return air & ~np.isin(regions, room), edge & ~padding


def _largest(tissue: NDArray[np.bool_], flat: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The body: the largest piece once the table's thin shell is gone."""
    pieces, count = ndimage.label(ndimage.binary_opening(tissue, flat))
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    sizes[0] = 0
    return np.asarray(pieces == sizes.argmax())


def _ahead(
    body: NDArray[np.bool_], padding: NDArray[np.bool_], body_axis: int, along: int, spacing_mm: Float64
) -> NDArray[np.bool_]:
    """What has the body before it along an axis, or the beginning of the image where that cuts the body off.

    It does where the body reaches its edge in ``BODY_CUT_MM`` of a slice, within the first eighth of the image: further
    along, the curve of a round field of view cuts the sides of a body whose back lies on the table.
    """
    columns, outside = np.moveaxis(body, along, 0), np.moveaxis(padding, along, 0)
    begin = np.argmin(outside, axis=0)
    seen = ~outside.all(axis=0)
    reached = seen & np.take_along_axis(columns, begin[None], axis=0)[0]
    # In a plane of columns: which of its axes are the slices.
    slices = body_axis - (body_axis > along)
    first = np.where(seen, begin, len(columns)).min(axis=1 - slices, keepdims=True)
    reached &= begin < first + len(columns) / 8
    across_mm = spacing_mm[2 - ({0, 1, 2} - {body_axis, along}).pop()]
    cut = reached.sum(axis=1 - slices, keepdims=True) * across_mm >= BODY_CUT_MM
    ahead = np.maximum.accumulate(columns | cut[None], axis=0)
    return np.moveaxis(ahead, 0, along)


def _medians(values: NDArray[np.int16], labels: NDArray[np.integer], chosen: NDArray[np.integer]) -> Float64:
    """The median value of each chosen label, (n,)."""
    if not len(chosen):
        return np.zeros(0)
    # The values of all labels are sorted: most of them, the background's, are not asked for.
    asked = np.isin(labels, chosen)
    return np.asarray(ndimage.median(values[asked], labels[asked], chosen), np.float64)


def _within_slices(body_axis: int) -> NDArray[np.bool_]:
    """Neighbours in the same slice across the body."""
    flat = np.asarray(ndimage.generate_binary_structure(3, 1), np.bool_)
    for end in (0, 2):
        flat[(slice(None),) * body_axis + (end,)] = False
    return flat


def _body_axis(volume: CTVolume) -> int:
    """Which of i, j, k runs most nearly from the feet to the head."""
    return int(np.argmax(np.abs(volume.direction[2])))
