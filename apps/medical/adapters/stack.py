"""The geometry of a CT series from its headers alone: a straight stack of evenly spaced axial slices, or an error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from apps.medical.adapters.pixels import integer
from apps.medical.adapters.series import AXIAL, MIN_SLICES, Slice
from apps.medical.types import MAX_VOXELS, Float64
from shared.errors import InvalidInputError

MAX_IMAGE_SIDE = 8192
MAX_SHIFT_MM = 1.0
"""The maximum distance of a slice's origin from the line through the first slice's origin along the normal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """The voxel grid of a series.

    slices            sorted along their normal
    positions_lps_mm  (n, 3), ImagePositionPatient of each
    spacing_mm        distance between voxel centres along i, j, k
    direction         3x3; its columns are the directions of i, j and k in LPS
    size_ijk          number of voxels along i, j, k
    """

    slices: tuple[Slice, ...]
    positions_lps_mm: Float64
    spacing_mm: tuple[float, float, float]
    direction: Float64
    size_ijk: tuple[int, int, int]


def stack(name: str, slices: Sequence[Slice]) -> Stack:
    """The grid of one CT series. Raises ``InvalidInputError`` unless slices are axial, even, straight and complete."""
    if len(slices) < MIN_SLICES:
        raise InvalidInputError(
            f"{name} holds {len(slices)} CT image(s); a volume needs a series of at least {MIN_SLICES}"
        )
    positions = np.array([_numbers(part, "ImagePositionPatient", 3) for part in slices])
    orientation = np.array([_numbers(part, "ImageOrientationPatient", 6) for part in slices])
    pixel = np.array([_numbers(part, "PixelSpacing", 2) for part in slices])
    shapes = {(integer(part, "Rows"), integer(part, "Columns")) for part in slices}
    if len(shapes) > 1 or np.ptp(orientation, axis=0).max() > 1e-3 or np.ptp(pixel, axis=0).max() > 1e-3:
        raise InvalidInputError(f"{name}: its images differ in size, orientation or pixel spacing; provide one series")
    if pixel.min() <= 0:
        raise InvalidInputError(
            f"{name} states a PixelSpacing of {pixel.min():g} mm, with which nothing can be measured"
        )
    along_i, along_j = orientation[0, :3], orientation[0, 3:]
    normal = np.cross(along_i, along_j)
    height = positions @ normal
    if not np.allclose([along_i @ along_i, along_j @ along_j, along_i @ along_j], [1, 1, 0], atol=1e-3):
        raise InvalidInputError(
            f"{name} has an ImageOrientationPatient that is not two perpendicular unit vectors; export it again"
        )
    if abs(normal[2]) < AXIAL:
        raise InvalidInputError(f"{name} is not in axial slices; provide the axial series")
    order = np.argsort(height, kind="stable")
    steps = np.diff(height[order])
    spacing = float(np.median(steps))
    if steps.min() < 0.01:
        duplicate = slices[order[int(np.argmin(steps))]].file
        raise InvalidInputError(
            f"{name}: two images have the same position ({duplicate}); provide a single phase or reconstruction"
        )
    if steps.max() > 1.2 * spacing + 0.02 or steps.min() < 0.8 * spacing - 0.02:
        worst = int(np.argmax(np.abs(steps - spacing)))
        raise InvalidInputError(
            f"{name}: slices are missing or unevenly spaced; {steps[worst]:.2f} mm lie between "
            f"{slices[order[worst]].file} and {slices[order[worst + 1]].file}, {spacing:.2f} mm elsewhere. Provide the "
            "complete series"
        )
    if np.abs(height[order] - np.linspace(height.min(), height.max(), len(slices))).max() > 0.5 * spacing:
        raise InvalidInputError(
            f"{name}: the slice spacing changes along the series; provide a series of evenly spaced slices"
        )
    _require_straight(name, positions[order], height[order], normal, [slices[index].file for index in order])
    rows, columns = shapes.pop()
    if (
        rows is None
        or columns is None
        or max(rows, columns) > MAX_IMAGE_SIDE
        or rows * columns * len(slices) > MAX_VOXELS
    ):
        raise InvalidInputError(
            f"{name} states {len(slices)} images of {rows} by {columns} pixels, which cannot be a CT; export it again",
            status=413,
        )
    spacing_ijk = (float(pixel[0, 1]), float(pixel[0, 0]), float((height[order[-1]] - height[order[0]]) / len(steps)))
    return Stack(
        slices=tuple(slices[index] for index in order),
        positions_lps_mm=positions[order],
        spacing_mm=spacing_ijk,
        direction=np.stack([along_i, along_j, normal], axis=1),
        size_ijk=(columns, rows, len(slices)),
    )


def _require_straight(name: str, positions: Float64, height: Float64, normal: Float64, files: Sequence[str]) -> None:
    """Raises ``InvalidInputError`` if slices are shifted in-plane: sheared by a tilted gantry, or otherwise displaced.

    ``positions`` (n, 3) and ``height`` (n) are in mm, sorted along the normal.
    """
    shifts = positions - np.outer(height, normal)
    shifts = shifts - shifts[0]
    if np.linalg.norm(shifts, axis=1).max() <= MAX_SHIFT_MM:
        return
    fraction = (height - height[0]) / (height[-1] - height[0])
    if np.linalg.norm(shifts - np.outer(fraction, shifts[-1]), axis=1).max() <= MAX_SHIFT_MM:
        raise InvalidInputError(f"{name} was acquired with a tilted gantry; resample it to a rectangular grid first")
    jumps = np.linalg.norm(np.diff(shifts, axis=0), axis=1)
    worst = int(np.argmax(jumps))
    raise InvalidInputError(
        f"{name}: its slices are shifted sideways against each other (ImagePositionPatient), by {jumps[worst]:.1f} mm "
        f"between {files[worst]} and {files[worst + 1]}; provide one scan of the patient in one position"
    )


def _numbers(part: Slice, keyword: str, count: int) -> list[float]:
    value = part.header.get(keyword)
    try:
        numbers = [float(number) for number in (value if isinstance(value, Sequence) else [])]
    except ValueError:
        numbers = []
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise InvalidInputError(f"{part.file} has no usable {keyword}, which is needed to measure; export it again")
    return numbers
