"""A nodule's axes, measured on the scan's own slices within the box that the network gives.

One definition for all that is shown: the nodule is the piece in the box that is denser than halfway from the lung
around it to its own core (the edge is blurred, and half of the way up is where it was), or to the ground glass around
its core where it has that (the whole of a part-solid nodule is measured); in the axial slice where that piece is
largest, the long axis and the longest across it (Lung-RADS v2022; Bankier et al., Radiology 285(2), 2017). The mean of
the two is the diameter, and the piece's extent is the box.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from apps.medical.metrics.diameter import Mask, largest_axes_mm
from apps.medical.types import Float64

AROUND_MM = 2.0
"""The box is widened by so much, for it may be too small."""

LUNG_HU = (-1000.0, -500.0)
MIN_CONTRAST_HU = 60.0

SHARE = 0.5
"""Of the way from the density of the lung to that of the nodule."""

REACH = 1.3
"""In half sides of the box from its middle, as an ellipsoid: chest wall that the nodule touches is left out."""

THREAD, THREAD_MM = 1 / 3, 8.0
"""What is thinner than this share of the box, or than this, hangs on and is no part of the nodule: a vessel."""

HALO_MM, HALO_HU, HALO_REACH = (1.2, 3.2), 150.0, 1.15
"""So far beside the solid piece there is ground glass if it is so much denser than the lung; and its ``REACH``."""

SMOOTH_MM = 0.5
"""Noise is smoothed over so much, as a standard deviation."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Long and short axis in mm; the nodule's box in voxels, lower corner then upper; voxel i covers [i, i + 1].

    ``mask_xyz`` says of the voxels of that box which are the nodule's.
    """

    axes_mm: tuple[float, float]
    box: Float64
    mask_xyz: Mask


def measure(hu_xyz: NDArray[np.floating | np.integer], box: Float64, spacing_mm: Float64) -> Measured | None:
    """The nodule in ``box`` (lower corner, then upper, in voxels of ``hu_xyz``); z is along the body.

    None where nothing there stands out from the lung.
    """
    reach = np.ceil(AROUND_MM / spacing_mm)
    low = np.floor(np.maximum(box[:3] - reach, 0)).astype(int)
    high = np.ceil(np.minimum(box[3:] + reach, hu_xyz.shape)).astype(int)
    part = hu_xyz[low[0] : high[0], low[1] : high[1], low[2] : high[2]].astype(np.float32)
    if not part.size:
        return None
    part = ndimage.gaussian_filter(part, SMOOTH_MM / spacing_mm, truncate=2)
    half = np.maximum((box[3:] - box[:3]) / 2, 1.0)
    offset = [
        (np.arange(n) + 0.5 + first - (a + b) / 2) / h
        for n, first, a, b, h in zip(part.shape, low, box[:3], box[3:], half, strict=True)
    ]
    distance = np.sqrt(offset[0][:, None, None] ** 2 + offset[1][None, :, None] ** 2 + offset[2] ** 2)
    inner = distance < max(0.45, 1.01 * float(distance.min()))
    core = float(np.median(part[inner]))
    outside = part[(distance > 1) & (part > LUNG_HU[0]) & (part < LUNG_HU[1])]
    lung = float(np.median(outside)) if len(outside) else -850.0
    if core - lung < MIN_CONTRAST_HU:
        return None
    width_mm = float(np.mean((box[3:5] - box[:2]) * spacing_mm[:2]))
    disc = _disc(spacing_mm, max(min(THREAD * width_mm, THREAD_MM) / 2, 0.7))

    def denser(level: float, reach: float) -> Mask:
        """The piece above ``level``, without what hangs on by a thread."""
        found = _piece((part > level) & (distance < reach), inner)
        apart = _piece(ndimage.binary_opening(found, disc), inner)
        return apart if apart.any() else found

    level = lung + SHARE * (core - lung)
    found = denser(level, REACH)
    if not found.any():
        return None
    halo = part[_around(found, spacing_mm) & (distance < 1)]
    if halo.size and lung + HALO_HU < (dense := float(np.median(halo))) < level:
        whole = denser(lung + SHARE * (dense - lung), HALO_REACH)
        found = whole if whole.any() else found
    inside = np.nonzero(found)
    first, last = np.min(inside, axis=1), np.max(inside, axis=1) + 1
    return Measured(
        axes_mm=largest_axes_mm(found, (float(spacing_mm[0]), float(spacing_mm[1]))),
        box=np.concatenate([first + low, last + low]).astype(np.float64),
        mask_xyz=found[first[0] : last[0], first[1] : last[1], first[2] : last[2]],
    )


def _around(found: Mask, spacing_mm: Float64) -> Mask:
    """What lies ``HALO_MM`` beside the piece, in the slice where it is largest.

    Elsewhere its surface slants or ends within a slice, and what is half in it is as grey as ground glass.
    """
    k = int(found.sum((0, 1)).argmax())
    to_centres_mm = ndimage.distance_transform_edt(~found[:, :, k], sampling=spacing_mm[:2])
    away_mm = to_centres_mm - spacing_mm[:2].mean() / 2
    near = np.zeros_like(found)
    near[:, :, k] = (away_mm > HALO_MM[0]) & (away_mm < HALO_MM[1])
    return near


def _disc(spacing_mm: Float64, radius_mm: float) -> Mask:
    """An axial disc, and at least a pixel and its neighbours."""
    x, y = (np.arange(-(n := max(1, int(radius_mm / step))), n + 1) * step for step in spacing_mm[:2].tolist())
    reach = max(radius_mm, 1.01 * float(spacing_mm[:2].max()))
    return np.asarray((x[:, None] ** 2 + y[None, :] ** 2 <= reach**2)[:, :, None])


def _piece(mask: Mask, inner: Mask) -> Mask:
    """The connected piece of which most lies in the middle; nothing where none does."""
    labels, count = ndimage.label(mask)
    inside = np.bincount(labels[inner], minlength=count + 1)
    inside[0] = 0
    return np.asarray(labels == inside.argmax()) if inside.any() else np.zeros_like(mask)
