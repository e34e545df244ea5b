"""The mean diameter of a nodule as it is reported: of its long and its short axis in an axial slice.

Bankier et al., Recommendations for Measuring Pulmonary Nodules at CT, Radiology 285(2), 2017: in the slice where the
nodule is largest, the longest diameter and the longest across it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
STEP = np.pi / 36


def axes_mm(mask_xy: Mask, spacing_mm: tuple[float, float]) -> tuple[float, float]:
    """The long axis of a shape, and its extent across that; a pixel counts with its width."""
    points = np.argwhere(mask_xy) * np.asarray(spacing_mm)
    angles = np.arange(0, np.pi, STEP)
    along = points @ np.array([np.cos(angles), np.sin(angles)])
    extent = np.ptp(along, axis=0) + float(np.mean(spacing_mm))
    longest = int(extent.argmax())
    return float(extent[longest]), float(extent[(longest + 18) % 36])


def largest_axes_mm(mask_xyz: Mask, spacing_mm: tuple[float, float]) -> tuple[float, float]:
    """The two axes in the slice where the shape (X, Y, Z) is largest."""
    largest = int(mask_xyz.sum(axis=(0, 1)).argmax())
    return axes_mm(mask_xyz[:, :, largest], spacing_mm)


def mean_axial_diameter_mm(mask_xyz: Mask, spacing_mm: tuple[float, float]) -> float:
    """Mean of the two axes in the slice where the shape (X, Y, Z) is largest."""
    return float(np.mean(largest_axes_mm(mask_xyz, spacing_mm)))
