"""The mean axial diameter of a nodule: the mean of its long and short axes in an axial slice.

Bankier et al., Recommendations for Measuring Pulmonary Nodules at CT, Radiology 285(2), 2017: the longest
diameter in the slice where the nodule is largest, and the longest diameter perpendicular to it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
ANGLE_STEP_RAD = np.pi / 36


def axes_mm(mask_xy: Mask, spacing_mm: tuple[float, float]) -> tuple[float, float]:
    """The length of a shape's longest axis and its extent perpendicular to it, both including the width of a pixel.

    ``mask_xy`` is (X, Y), ``spacing_mm`` the size of a pixel along x and y.
    """
    points = np.argwhere(mask_xy) * np.asarray(spacing_mm)
    angles = np.arange(0, np.pi, ANGLE_STEP_RAD)
    projections = points @ np.array([np.cos(angles), np.sin(angles)])
    extent = np.ptp(projections, axis=0) + float(np.mean(spacing_mm))
    longest = int(extent.argmax())
    return float(extent[longest]), float(extent[(longest + 18) % 36])


def largest_axes_mm(mask_xyz: Mask, spacing_mm: tuple[float, float]) -> tuple[float, float]:
    """The lengths of both axes in the slice where the shape (X, Y, Z) has the largest area."""
    largest = int(mask_xyz.sum(axis=(0, 1)).argmax())
    return axes_mm(mask_xyz[:, :, largest], spacing_mm)


def mean_axial_diameter_mm(mask_xyz: Mask, spacing_mm: tuple[float, float]) -> float:
    """The mean of both axes in the slice where the shape (X, Y, Z) has the largest area."""
    return float(np.mean(largest_axes_mm(mask_xyz, spacing_mm)))
