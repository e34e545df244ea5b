"""Where the lungs are: air inside the body, found on a coarse grid in a fraction of a second.

The detector then looks at the lungs' box alone, and a finding that is not at a lung is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from apps.medical.types import CTVolume, Float64

COARSE_MM = 2.5
AIR_HU = -400
LEAST_ML = 60.0
"""Less aerated lung than this in a scan is taken for gas elsewhere."""

NEAR_MM = 14.0
LEAST_CUT_MM2 = 1500.0
"""More lung than this in the first or last slice is lung cut off; the trachea is smaller."""


@dataclass(frozen=True, slots=True)
class Lungs:
    """Aerated lung in a volume.

    near_zyx  what lies within ``NEAR_MM`` of aerated lung (as a box around each voxel), every ``steps`` voxel along
              i, j, k of the volume
    low_ijk, high_ijk  the lungs' box with that margin, in indices of the volume; high is exclusive
    millilitres        volume of aerated lung
    cut                whether aerated lung reaches the first or the last slice
    """

    near_zyx: NDArray[np.bool_]
    steps: tuple[int, int, int]
    low_ijk: tuple[int, int, int]
    high_ijk: tuple[int, int, int]
    millilitres: float
    cut: bool

    def contain(self, index_ijk: Float64) -> NDArray[np.bool_]:
        """Which of the indices (n, 3) lie near a lung."""
        coarse = np.rint(np.asarray(index_ijk) / self.steps).astype(int)
        limits = np.array(self.near_zyx.shape[::-1]) - 1
        i, j, k = np.clip(coarse, 0, limits).T
        return np.asarray(self.near_zyx[k, j, i])


def find_lungs(volume: CTVolume) -> Lungs | None:
    """The lungs in ``volume``, or None where there is no aerated lung to speak of."""
    steps = tuple(max(1, int(COARSE_MM / spacing)) for spacing in volume.spacing_mm)
    coarse = volume.voxels_zyx[:: steps[2], :: steps[1], :: steps[0]]
    spacing = np.array(volume.spacing_mm) * steps
    labels, count = ndimage.label(coarse < AIR_HU)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    # Air around the body touches the sides of the image; lungs may touch its top and bottom only.
    for axis in _in_plane_axes(volume):
        for end in (0, -1):
            sizes[np.unique(labels.take(end, axis=axis))] = 0
    voxel_ml = float(np.prod(spacing)) / 1000
    kept = (sizes * voxel_ml >= LEAST_ML) & (sizes >= 0.15 * sizes.max(initial=0))
    if not kept.any():
        return None
    near = kept[labels]
    aerated = float(near.sum()) * voxel_ml
    ends = [near.take(end, axis=2 - _body_axis(volume)).sum() for end in (0, -1)]
    area = float(np.prod(spacing) / spacing[_body_axis(volume)])
    cut = max(ends) * area > LEAST_CUT_MM2
    for axis, along in zip((2, 1, 0), spacing, strict=True):
        near = ndimage.maximum_filter1d(near, 2 * int(np.ceil(NEAR_MM / along)) + 1, axis=axis)
    low, high = [], []
    for axis, step, size in zip((2, 1, 0), steps, volume.size_ijk, strict=True):
        present = np.nonzero(near.any(axis=tuple({0, 1, 2} - {axis})))[0]
        low.append(max(0, int(present[0]) * step))
        high.append(min(size, (int(present[-1]) + 1) * step))
    return Lungs(near, steps, tuple(low), tuple(high), aerated, bool(cut))


def _in_plane_axes(volume: CTVolume) -> list[int]:
    """The two array axes (of z, y, x) that lie most nearly across the body."""
    return [2 - index for index in range(3) if index != _body_axis(volume)]


def _body_axis(volume: CTVolume) -> int:
    """Which of i, j, k runs most nearly from the feet to the head."""
    return int(np.argmax(np.abs(volume.direction[2])))
