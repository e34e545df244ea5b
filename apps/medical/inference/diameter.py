"""Segments a nodule in the original slices of a scan, within the network's box, and measures its axes.

Every output uses this one definition. The nodule is the connected component in the box above a threshold halfway
between the density of the surrounding lung and that of the nodule's core, since a blurred edge is at half its height.
If ground glass surrounds the core, the threshold is halfway between lung and ground glass instead, so that a part-solid
nodule is measured as a whole. The axes are the long axis in the axial slice where the component is largest, and the
longest axis perpendicular to it (Lung-RADS v2022; Bankier et al., Radiology 285(2), 2017). Their mean is the diameter,
and the extent of the component is the box.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from apps.medical.metrics.diameter import Mask, largest_axes_mm
from apps.medical.types import Float64

BOX_MARGIN_MM = 2.0
"""The box is widened by this margin, since it may be too small."""

LUNG_HU = (-1000.0, -500.0)
MIN_CONTRAST_HU = 60.0

THRESHOLD_FRACTION = 0.5
"""Where the threshold lies between the density of the lung (0) and that of the nodule (1)."""

MAX_DISTANCE = 1.3
"""The nodule lies within an ellipsoid of this many half sides of the box, which excludes adjoining chest wall."""

MIN_WIDTH_FRACTION, MAX_VESSEL_MM = 1 / 3, 8.0
"""Attached parts thinner than this fraction of the box, and than this width, are vessels and not part of the nodule."""

HALO_MM, HALO_HU, HALO_MAX_DISTANCE = (1.2, 3.2), 150.0, 1.15
"""Voxels at this range of distances from the solid component are ground glass if they are denser than the lung by this
difference. The last value replaces ``MAX_DISTANCE`` for ground glass."""

SMOOTHING_SIGMA_MM = 0.5
"""Standard deviation of the Gaussian that reduces noise."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """The long and short axis in mm, and the nodule's box in voxels: lower corner, upper corner.

    Voxel i covers [i, i + 1]. ``mask_xyz`` marks the nodule's voxels within the box.
    """

    axes_mm: tuple[float, float]
    box: Float64
    mask_xyz: Mask


def measure_nodule(hu_xyz: NDArray[np.floating | np.integer], box: Float64, spacing_mm: Float64) -> Measurement | None:
    """Measures the nodule in ``box`` (lower corner, upper corner, in voxels of ``hu_xyz``); z runs along the body.

    Returns None if nothing in the box contrasts with the lung.
    """
    margin = np.ceil(BOX_MARGIN_MM / spacing_mm)
    low = np.floor(np.maximum(box[:3] - margin, 0)).astype(int)
    high = np.ceil(np.minimum(box[3:] + margin, hu_xyz.shape)).astype(int)
    crop = hu_xyz[low[0] : high[0], low[1] : high[1], low[2] : high[2]].astype(np.float32)
    if not crop.size:
        return None
    crop = ndimage.gaussian_filter(crop, SMOOTHING_SIGMA_MM / spacing_mm, truncate=2)
    half_sides = np.maximum((box[3:] - box[:3]) / 2, 1.0)
    offset = [
        (np.arange(n) + 0.5 + first - (a + b) / 2) / h
        for n, first, a, b, h in zip(crop.shape, low, box[:3], box[3:], half_sides, strict=True)
    ]
    distance = np.sqrt(offset[0][:, None, None] ** 2 + offset[1][None, :, None] ** 2 + offset[2] ** 2)
    inner = distance < max(0.45, 1.01 * float(distance.min()))
    core = float(np.median(crop[inner]))
    outside = crop[(distance > 1) & (crop > LUNG_HU[0]) & (crop < LUNG_HU[1])]
    lung = float(np.median(outside)) if len(outside) else -850.0
    if core - lung < MIN_CONTRAST_HU:
        return None
    width_mm = float(np.mean((box[3:5] - box[:2]) * spacing_mm[:2]))
    disc = _disc(spacing_mm, max(min(MIN_WIDTH_FRACTION * width_mm, MAX_VESSEL_MM) / 2, 0.7))

    def segment(threshold: float, max_distance: float) -> Mask:
        """The component above ``threshold``, without thin attachments."""
        component = _central_component((crop > threshold) & (distance < max_distance), inner)
        opened = _central_component(ndimage.binary_opening(component, disc), inner)
        return opened if opened.any() else component

    threshold = lung + THRESHOLD_FRACTION * (core - lung)
    nodule = segment(threshold, MAX_DISTANCE)
    if not nodule.any():
        return None
    halo = crop[_halo(nodule, spacing_mm) & (distance < 1)]
    if halo.size and lung + HALO_HU < (halo_density := float(np.median(halo))) < threshold:
        part_solid = segment(lung + THRESHOLD_FRACTION * (halo_density - lung), HALO_MAX_DISTANCE)
        nodule = part_solid if part_solid.any() else nodule
    inside = np.nonzero(nodule)
    first, last = np.min(inside, axis=1), np.max(inside, axis=1) + 1
    return Measurement(
        axes_mm=largest_axes_mm(nodule, (float(spacing_mm[0]), float(spacing_mm[1]))),
        box=np.concatenate([first + low, last + low]).astype(np.float64),
        mask_xyz=nodule[first[0] : last[0], first[1] : last[1], first[2] : last[2]],
    )


def _halo(nodule: Mask, spacing_mm: Float64) -> Mask:
    """The voxels at a distance of ``HALO_MM`` from the nodule, in the slice where it is largest.

    In other slices partial volume at its slanted surface is as grey as ground glass.
    """
    k = int(nodule.sum((0, 1)).argmax())
    to_centres_mm = ndimage.distance_transform_edt(~nodule[:, :, k], sampling=spacing_mm[:2])
    distance_mm = to_centres_mm - spacing_mm[:2].mean() / 2
    halo = np.zeros_like(nodule)
    halo[:, :, k] = (distance_mm > HALO_MM[0]) & (distance_mm < HALO_MM[1])
    return halo


def _disc(spacing_mm: Float64, radius_mm: float) -> Mask:
    """An axial disc that contains at least a pixel and its four neighbours."""
    x, y = (np.arange(-(n := max(1, int(radius_mm / step))), n + 1) * step for step in spacing_mm[:2].tolist())
    radius = max(radius_mm, 1.01 * float(spacing_mm[:2].max()))
    return np.asarray((x[:, None] ** 2 + y[None, :] ** 2 <= radius**2)[:, :, None])


def _central_component(mask: Mask, inner: Mask) -> Mask:
    """The connected component with the most voxels in ``inner``; empty if no component has any."""
    labels, count = ndimage.label(mask)
    inside = np.bincount(labels[inner], minlength=count + 1)
    inside[0] = 0
    return np.asarray(labels == inside.argmax()) if inside.any() else np.zeros_like(mask)
