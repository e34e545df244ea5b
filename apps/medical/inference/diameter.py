"""A nodule's diameter, measured on the image within the box that the network gives.

It is that of what is denser than two fifths of the way from the lung around to the nodule. The share, and how far
beyond the box is looked, were chosen on synthetic phantoms that nothing is scored on.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from apps.medical.metrics.diameter import Mask, mean_axial_diameter_mm
from apps.medical.types import Float64

AROUND_MM = 2.0
"""The box is widened by so much, for it may be too small."""

LUNG_HU = (-1000.0, -500.0)
MIN_CONTRAST_HU = 60.0

SHARE = 0.4
"""Of the way from the density of the lung to that of the nodule; the edge is blurred."""

REACH = 1.3
"""In half sides of the box from its middle, as an ellipsoid: chest wall that the nodule touches is left out."""


def measure(hu_xyz: NDArray[np.float32], box: Float64, spacing_mm: Float64) -> float | None:
    """The diameter in mm of the nodule in ``box`` (lower corner, then upper, in voxels of ``hu_xyz``).

    None where nothing there stands out from the lung.
    """
    reach = np.ceil(AROUND_MM / spacing_mm)
    low = np.floor(np.maximum(box[:3] - reach, 0)).astype(int)
    high = np.ceil(np.minimum(box[3:] + reach, hu_xyz.shape)).astype(int)
    part = hu_xyz[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
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
    dense = (part > lung + SHARE * (core - lung)) & (distance < REACH)
    found = _piece(dense, inner)
    # What hangs on by a thread, a vessel, is no part of it.
    apart = _piece(ndimage.binary_opening(found, _DISC), inner)
    found = apart if apart.any() else found
    return mean_axial_diameter_mm(found, (float(spacing_mm[0]), float(spacing_mm[1]))) if found.any() else None


_DISC = np.ones((3, 3, 1), bool)
_DISC[::2, ::2] = False


def _piece(mask: Mask, inner: Mask) -> Mask:
    """The connected piece of which most lies in the middle; nothing where none does."""
    labels, count = ndimage.label(mask)
    inside = np.bincount(labels[inner], minlength=count + 1)
    inside[0] = 0
    return np.asarray(labels == inside.argmax()) if inside.any() else np.zeros_like(mask)
