"""Finds the lungs as air inside the body, on a coarse grid, in a fraction of a second.

Not all air is lung: stomach, bowel, trachea and bronchi contain gas, which is as dark as room air and, within a slice,
a separate component. The detector searches only the box of the lungs, and findings that are not at a lung are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from apps.medical.types import CTVolume, Float64, triple

COARSE_MM = 2.5
AIR_HU = -400
MIN_ML = 60.0
"""The minimum volume of a component of air for it to be lung."""

MIN_DEEP_ML = 5.0
"""The minimum volume of a lung at a depth of two coarse voxels below its surface."""

GAS_HU = -940
"""Bowel gas is darker than this. Lung is not, except in severe emphysema."""

AIRWAY_HU, AIRWAY_MM2 = -930, 800.0
"""A component of air in a slice that is both darker and smaller than this is an airway or a loop of bowel."""

BUBBLE_HU, BUBBLE_MM2 = -955, 8000.0
"""The same limits for the stomach bubble and the colon. A slice through both lungs has a larger area."""

NEAR_GAS_MM, NEAR_LUNG_MM = 8.0, 4.0
"""Voxels this close to such gas are not searched, unless they are this close to lung."""

ROOM_HU = -970
"""Room air is darker than this, near -1000. Emphysema that fills most of a lung is still denser."""

SMALL_ML = 400.0
"""A component of air that is smaller than this may be gas."""

NEAR_MM = 14.0
BODY_CUT_MM = 20.0
"""If the body touches the front or back of the image over this width of a slice, the image cuts it off there."""

MIN_CUT_MM2 = 1500.0
"""If more lung than this touches an end or the sides of the image, the lung is cut off. The trachea is smaller."""


@dataclass(frozen=True, slots=True)
class Lungs:
    """Aerated lung in a volume.

    near_zyx           mask of the voxels within ``NEAR_MM`` of aerated lung (Chebyshev distance), subsampled
    first, steps       the subsampling of the volume along i, j, k: first index and step
    low_ijk, high_ijk  the box of the lungs with that margin, in indices of the volume; high is exclusive
    millilitres        volume of aerated lung
    cut                whether aerated lung reaches the edge of the image: the first slice, the last, or the sides
    """

    near_zyx: NDArray[np.bool_]
    first: tuple[int, int, int]
    steps: tuple[int, int, int]
    low_ijk: tuple[int, int, int]
    high_ijk: tuple[int, int, int]
    millilitres: float
    cut: bool

    def contain(self, index_ijk: Float64) -> NDArray[np.bool_]:
        """Which of the indices (N, 3) are near a lung."""
        coarse = np.rint((np.asarray(index_ijk) - self.first) / self.steps).astype(int)
        limits = np.array(self.near_zyx.shape[::-1]) - 1
        i, j, k = np.clip(coarse, 0, limits).T
        return np.asarray(self.near_zyx[k, j, i])


def find_lungs(volume: CTVolume) -> Lungs | None:
    """The lungs in ``volume``, or None if it contains too little aerated lung.

    In doubt a region counts as lung, since the rest of the volume is never searched.
    """
    steps = triple(max(1, int(COARSE_MM / spacing)) for spacing in volume.spacing_mm)
    first = _sampling_start(volume, steps)
    coarse = volume.voxels_zyx[tuple(slice(first[n], None, steps[n]) for n in (2, 1, 0))]
    spacing = np.array(volume.spacing_mm) * steps
    voxel_ml = float(np.prod(spacing)) / 1000
    body_axis = 2 - _body_axis(volume)
    air, edge = _air_inside_body(coarse, spacing, body_axis, 2 - int(np.argmax(np.abs(volume.direction[1]))))
    labels, count = ndimage.label(air)
    millilitres = np.bincount(labels.ravel(), minlength=count + 1) * voxel_ml
    # Excludes thin layers of air along the skin.
    deep = ndimage.binary_erosion(air, _in_plane_structure(body_axis), iterations=2)
    depth = np.bincount(labels[deep], minlength=count + 1) * voxel_ml
    gas = _gas_mask(coarse, air, spacing, body_axis)
    kept = (millilitres >= MIN_ML) & (depth >= MIN_DEEP_ML)
    kept[0] = False
    # A collapsed lung is at least as dense as the other lung; stomach gas is darker.
    small = np.nonzero(kept & (millilitres < max(0.15 * millilitres[kept].max(initial=0), SMALL_ML)))[0]
    kept[small] = _medians(coarse, labels, small) >= GAS_HU
    # A component is not lung if at least half of it is gas in the individual slices.
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
    at_gas = _dilate(gas, spacing, NEAR_GAS_MM) & ~_dilate(near, spacing, NEAR_LUNG_MM)
    near = _dilate(near, spacing, NEAR_MM) & ~at_gas
    low, high = [], []
    for axis, start, step, size in zip((2, 1, 0), first, steps, volume.size_ijk, strict=True):
        present = np.nonzero(near.any(axis=tuple({0, 1, 2} - {axis})))[0]
        low.append(start + int(present[0]) * step if present[0] else 0)
        high.append(min(size, start + (int(present[-1]) + 1) * step))
    return Lungs(near, first, steps, triple(low), triple(high), aerated, bool(cut))


def _gas_mask(
    coarse: NDArray[np.int16], air: NDArray[np.bool_], spacing_mm: Float64, body_axis: int
) -> NDArray[np.bool_]:
    """Air that is not lung, by the density and area of its components in each axial slice."""
    components, count = ndimage.label(air, _in_plane_structure(body_axis))
    if not count:
        return np.zeros(air.shape, bool)
    area = float(np.prod(spacing_mm) / spacing_mm[2 - body_axis])
    sizes = np.bincount(components.ravel(), minlength=count + 1) * area
    sizes[0] = np.inf
    candidates = np.nonzero(sizes < BUBBLE_MM2)[0]
    medians = np.full(count + 1, 0.0)
    medians[candidates] = _medians(coarse, components, candidates)
    airway = (sizes < AIRWAY_MM2) & (medians < AIRWAY_HU)
    bubble = (sizes < BUBBLE_MM2) & (medians < BUBBLE_HU)
    return np.asarray((airway | bubble)[components])


def _dilate(mask: NDArray[np.bool_], spacing_mm: Float64, radius_mm: float) -> NDArray[np.bool_]:
    """Dilates a mask (z, y, x) by a box of half side ``radius_mm``."""
    for axis, spacing in zip((2, 1, 0), spacing_mm, strict=True):
        mask = ndimage.maximum_filter1d(mask, 2 * int(np.ceil(radius_mm / spacing)) + 1, axis=axis)
    return mask


def _sampling_start(volume: CTVolume, steps: tuple[int, int, int]) -> tuple[int, int, int]:
    """The first index of the subsampling along i, j, k. Sample positions are fixed in space for any crop of a scan."""
    origin = np.array(volume.origin_lps_mm) @ volume.direction / volume.spacing_mm
    return triple(int(-np.floor(at + 0.51) % step) for at, step in zip(origin, steps, strict=True))


def _air_inside_body(
    coarse: NDArray[np.int16], spacing_mm: Float64, body_axis: int, back_axis: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks of the air inside the body and of the in-plane edge of the image, (z, y, x) each.

    Room air is found slice by slice. So lung that is connected to it in a slice (through the trachea, or a chest wall
    outside the field of view) is lost only in that slice. Lung that touches the edge of the image lies between the
    front and the back of the body, and is denser than room air.
    """
    flat = _in_plane_structure(body_axis)
    edge = np.zeros(coarse.shape, bool)
    for axis in {0, 1, 2} - {body_axis}:
        for end in (0, -1):
            edge[(slice(None),) * axis + (end,)] = True
    # Scanners fill the area outside a round field of view with one value, the minimum of the image.
    min_hu = coarse.min()
    filled, _ = ndimage.label((coarse == min_hu) & (min_hu < GAS_HU), flat)
    padding = np.isin(filled, np.setdiff1d(filled[edge], 0))
    edge |= ndimage.binary_dilation(padding, flat)
    air = (coarse < AIR_HU) & ~padding
    regions, _ = ndimage.label(air, flat)
    touching = np.setdiff1d(regions[edge], 0)
    body = _body_mask(coarse >= AIR_HU, flat)
    to_back = _has_body_before(body, padding, body_axis, back_axis, spacing_mm)
    to_front = _has_body_before(np.flip(body, back_axis), np.flip(padding, back_axis), body_axis, back_axis, spacing_mm)
    between = to_back & np.flip(to_front, back_axis)
    inside = np.bincount(regions[between], minlength=regions.max() + 1)
    mostly_inside = inside[touching] > 0.5 * np.bincount(regions.ravel())[touching]
    room = touching[~mostly_inside | (_medians(coarse, regions, touching) < ROOM_HU)]
    return air & ~np.isin(regions, room), edge & ~padding


def _body_mask(tissue: NDArray[np.bool_], flat: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The body: the largest component after an opening that removes the thin shell of the table."""
    components, count = ndimage.label(ndimage.binary_opening(tissue, flat))
    sizes = np.bincount(components.ravel(), minlength=count + 1)
    sizes[0] = 0
    return np.asarray(components == sizes.argmax())


def _has_body_before(
    body: NDArray[np.bool_], padding: NDArray[np.bool_], body_axis: int, along: int, spacing_mm: Float64
) -> NDArray[np.bool_]:
    """The voxels that have body before them along an axis, and all voxels of slices whose start cuts off the body.

    The start of a slice cuts off the body if they touch over ``BODY_CUT_MM`` within the first eighth of the image.
    Further along, the curve of a round field of view cuts the sides of a body whose back lies on the table.
    """
    body_columns, outside = np.moveaxis(body, along, 0), np.moveaxis(padding, along, 0)
    begin = np.argmin(outside, axis=0)
    seen = ~outside.all(axis=0)
    reached = seen & np.take_along_axis(body_columns, begin[None], axis=0)[0]
    # The axis of the slices in a plane of columns.
    slices = body_axis - (body_axis > along)
    first = np.where(seen, begin, len(body_columns)).min(axis=1 - slices, keepdims=True)
    reached &= begin < first + len(body_columns) / 8
    column_width_mm = spacing_mm[2 - ({0, 1, 2} - {body_axis, along}).pop()]
    cut = reached.sum(axis=1 - slices, keepdims=True) * column_width_mm >= BODY_CUT_MM
    ahead = np.maximum.accumulate(body_columns | cut[None], axis=0)
    return np.moveaxis(ahead, 0, along)


def _medians(values: NDArray[np.int16], labels: NDArray[np.integer], chosen: NDArray[np.integer]) -> Float64:
    """The median value of each chosen label, (N,)."""
    if not len(chosen):
        return np.zeros(0)
    # ndimage.median sorts the values of all labels. Dropping the background, most of them, makes that faster.
    is_chosen = np.isin(labels, chosen)
    return np.asarray(ndimage.median(values[is_chosen], labels[is_chosen], chosen), np.float64)


def _in_plane_structure(body_axis: int) -> NDArray[np.bool_]:
    """A structuring element of the four neighbours in the same axial slice."""
    flat = np.asarray(ndimage.generate_binary_structure(3, 1), np.bool_)
    for end in (0, 2):
        flat[(slice(None),) * body_axis + (end,)] = False
    return flat


def _body_axis(volume: CTVolume) -> int:
    """Which of i, j, k is closest to the direction from feet to head."""
    return int(np.argmax(np.abs(volume.direction[2])))
