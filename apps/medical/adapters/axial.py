"""Converts an image on any regular grid to a volume in Hounsfield units with axial slices."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.medical.adapters.hounsfield import require_hounsfield
from apps.medical.adapters.series import AXIAL
from apps.medical.types import CTVolume, Float64, triple
from shared.errors import InvalidInputError

AXES_REORDERED = "The file's slices are not axial: its axes were reordered, and slices are counted along the body."


def axial_volume(name: str, values_zyx: NDArray[Any], affine: Float64, identifiers: dict[str, str]) -> CTVolume:
    """The volume of an image whose 4x4 ``affine`` maps voxel indices (i, j, k) to LPS in mm.

    Axes are permuted, not flipped: i runs left-right, j front-back and k along the body. Raises ``InvalidInputError``
    if the values cannot be a CT's, or the grid is sheared or more than 37 degrees oblique.
    """
    if not np.isfinite(values_zyx).all():
        raise InvalidInputError(f"{name} contains values that are not finite; expected Hounsfield units")
    require_hounsfield(name, values_zyx)
    steps = affine[:3, :3]
    spacing = np.linalg.norm(steps, axis=0)
    if not np.isfinite(affine).all() or spacing.min() < 1e-3:
        raise InvalidInputError(f"{name} states a spacing of {spacing.min():g} mm, with which nothing can be measured")
    direction = steps / spacing
    if not np.allclose(direction.T @ direction, np.eye(3), atol=1e-3):
        raise InvalidInputError(f"{name} is sheared (was the gantry tilted?); resample it to a rectangular grid first")
    k = int(np.argmax(np.abs(direction[2])))
    i, j = sorted((axis for axis in range(3) if axis != k), key=lambda axis: -abs(direction[0, axis]))
    if abs(direction[2, k]) < AXIAL:
        raise InvalidInputError(f"{name} is oblique: its slices are far from axial; resample it to axial slices first")
    voxels = np.clip(np.rint(values_zyx), -1024, 32767).astype(np.int16)
    return CTVolume(
        voxels_zyx=np.ascontiguousarray(voxels.transpose(2 - k, 2 - j, 2 - i)),
        spacing_mm=triple(spacing[[i, j, k]].tolist()),
        origin_lps_mm=triple(affine[:3, 3].tolist()),
        direction=direction[:, [i, j, k]],
        identifiers=identifiers,
        remarks=() if (i, j, k) == (0, 1, 2) else (AXES_REORDERED,),
    )
