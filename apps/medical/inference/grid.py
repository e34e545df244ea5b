"""Resamples a part of a CT to the network's grid: its axes and the voxel spacing that it was trained at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from apps.medical.types import CTVolume, Float64, Piece, triple
from shared.device import to_device

RIGHT_ANTERIOR_SUPERIOR = np.diag([-1.0, -1.0, 1.0])
"""Directions of the grid's axes in LPS, as columns: MONAI's orientation RAS."""

ROUNDING = 1e-6
"""Tolerance of positions, in voxels."""


@dataclass(frozen=True, slots=True)
class Grid:
    """``size`` voxels along x, y, z at ``spacing_mm``; the centre of the first voxel is ``origin_lps_mm``."""

    origin_lps_mm: Float64
    spacing_mm: Float64
    size: tuple[int, int, int]

    def to_lps_mm(self, position: Float64) -> Float64:
        """Converts positions (N, 3) in voxels, where voxel i covers [i, i + 1], to LPS mm."""
        offset = (position - 0.5) * self.spacing_mm @ RIGHT_ANTERIOR_SUPERIOR.T
        return np.asarray(offset + self.origin_lps_mm)

    def to_voxels(self, position_lps_mm: Float64) -> Float64:
        """The inverse of ``to_lps_mm``: positions (..., 3) in voxels, where voxel i covers [i, i + 1]."""
        offset = np.asarray(position_lps_mm) - self.origin_lps_mm
        return np.asarray(offset @ RIGHT_ANTERIOR_SUPERIOR / self.spacing_mm + 0.5)

    def centres_lps_mm(self, index: Float64) -> Float64:
        """The centres (..., 3) of the voxels with these indices (..., 3), in LPS mm."""
        return np.asarray(index * self.spacing_mm @ RIGHT_ANTERIOR_SUPERIOR.T + self.origin_lps_mm)


def reorient_to_lps(volume: CTVolume) -> CTVolume:
    """Permutes and flips the axes of the volume into the order and direction closest to LPS."""
    order, signs = _orientation(volume)
    if order == (0, 1, 2) and signs == [1, 1, 1]:
        return volume
    last = np.array(volume.size_ijk) - 1
    first = [last[axis] if sign < 0 else 0 for axis, sign in sorted(zip(order, signs, strict=True))]
    reoriented = volume.voxels_zyx.transpose([2 - axis for axis in reversed(order)])
    reoriented = reoriented[tuple(slice(None, None, sign) for sign in reversed(signs))]
    return CTVolume(
        voxels_zyx=np.ascontiguousarray(reoriented),
        spacing_mm=triple(volume.spacing_mm[axis] for axis in order),
        origin_lps_mm=triple(volume.to_lps_mm(first).tolist()),
        direction=volume.direction[:, list(order)] * signs,
        name=volume.name,
    )


def stored_piece(stored: CTVolume, mask_xyz: NDArray[np.bool_], low_xyz: Sequence[int]) -> Piece:
    """Converts a mask in ``reorient_to_lps(stored)``, whose box starts at ``low_xyz``, to a piece of ``stored``."""
    order, signs = _orientation(stored)
    low = [0, 0, 0]
    for row, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        low[axis] = low_xyz[row] if sign > 0 else stored.size_ijk[axis] - low_xyz[row] - mask_xyz.shape[row]
    mask_ijk = mask_xyz[tuple(slice(None, None, sign) for sign in signs)].transpose(
        [order.index(axis) for axis in range(3)]
    )
    return Piece(low_ijk=triple(low), size_ijk=triple(mask_ijk.shape), bits=np.packbits(mask_ijk).tobytes())


def _orientation(volume: CTVolume) -> tuple[tuple[int, int, int], list[int]]:
    """Which of i, j, k runs along x, y and z, and whether in the same direction (1) or the opposite one (-1)."""
    order = _nearest_axes(volume.direction)
    return order, [1 if volume.direction[row, axis] >= 0 else -1 for row, axis in enumerate(order)]


def _nearest_axes(direction: Float64) -> tuple[int, int, int]:
    """The permutation of i, j, k that is closest to x, y, z."""
    cosines = np.abs(direction)
    orders = [triple(order) for order in permutations(range(3))]
    return max(orders, key=lambda order: float(sum(cosines[row, order[row]] for row in range(3))))


def cover(
    volume: CTVolume,
    low_ijk: tuple[int, int, int],
    high_ijk: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    strides: Sequence[int],
) -> Grid:
    """The smallest grid that covers a box of volume indices (high is exclusive) and starts at a lattice point.

    Lattice points are ``strides`` voxels apart, and one is at the origin of the patient's coordinates. So a network
    with these strides sees the image at the same phase, however the volume was cropped.
    """
    ends = np.array([low_ijk, np.array(high_ijk) - 1], np.float64)
    corners = np.array([[ends[a, 0], ends[b, 1], ends[c, 2]] for a in (0, 1) for b in (0, 1) for c in (0, 1)])
    corners_ras = volume.to_lps_mm(corners) @ RIGHT_ANTERIOR_SUPERIOR
    low, high = corners_ras.min(axis=0), corners_ras.max(axis=0)
    spacing = np.array(spacing_mm, np.float64)
    period = spacing * strides
    # Rounds first, so that a box that starts at a lattice point keeps it.
    low = np.floor(np.round(low / period, 6)) * period
    size = triple(int(n) for n in np.floor((high - low) / spacing + ROUNDING) + 1)
    return Grid(low @ RIGHT_ANTERIOR_SUPERIOR.T, spacing, size)


def resample(
    volume: CTVolume, grid: Grid, window_hu: tuple[float, float], device: torch.device | str = "cpu"
) -> Tensor:
    """Resamples the volume to the grid by linear interpolation: (X, Y, Z), ``window_hu`` scaled to 0..1, 0 outside."""
    first = volume.to_index_ijk(grid.centres_lps_mm(np.zeros(3)))
    step = (RIGHT_ANTERIOR_SUPERIOR.T * grid.spacing_mm[:, None]) @ volume.direction / volume.spacing_mm
    low, high = window_hu
    if np.all(np.sum(np.abs(step) > 1e-4 * np.abs(step).max(axis=1, keepdims=True), axis=1) == 1):
        values = _resample_separable(volume, first, step, grid.size, low, device)
    else:
        values = _resample_oblique(volume, first, step, grid.size, low, device)
    return values.sub_(low).div_(high - low).clamp_(0, 1)


def averaged(image: Tensor, times: int) -> Tensor:
    """Average pooling over ``times`` voxels along each axis: (X', Y', Z'). The end of the image is zero-padded."""
    # The axes are in the order z, y, x, as ``resample`` leaves the voxels in memory: whole slices first, then whole
    # rows. Pooling one axis after the other takes a third of the time of 3D pooling.
    sums = image.permute(2, 1, 0)
    for axis in range(3):
        sums = _sum_pool(sums, axis, times)
    return sums.div_(times**3).permute(2, 1, 0)


def _sum_pool(values: Tensor, axis: int, times: int) -> Tensor:
    """The sums of ``times`` neighbours along an axis; the last sum may have fewer."""
    first, *rest = (values[(slice(None),) * axis + (slice(n, None, times),)] for n in range(times))
    if rest and rest[0].shape == first.shape:
        total, rest = first + rest[0], rest[1:]
    else:
        total = first.clone()
    for neighbours in rest:
        total.narrow(axis, 0, neighbours.shape[axis]).add_(neighbours)
    return total


def _resample_separable(
    volume: CTVolume, first: Float64, step: Float64, size: tuple[int, int, int], air: float, device: torch.device | str
) -> Tensor:
    """Resamples along one axis after the other, which is possible if the axes of grid and volume are parallel."""
    source_axes = [int(np.argmax(np.abs(row))) for row in step]
    crop, positions = {}, {}
    for axis, source_axis in enumerate(source_axes):
        at = first[source_axis] + step[axis, source_axis] * np.arange(size[axis])
        begin = int(np.clip(np.floor(at.min()), 0, volume.size_ijk[source_axis] - 1))
        end = int(np.clip(np.ceil(at.max()) + 1, begin + 1, volume.size_ijk[source_axis]))
        crop[source_axis], positions[axis] = slice(begin, end), (at, begin, end)
    cropped = volume.voxels_zyx[crop[2], crop[1], crop[0]]
    # An axial scan is stored in the order z, y, x, so that whole rows and slices are copied.
    values = torch.from_numpy(np.ascontiguousarray(cropped)).to(device)
    values = values.permute([2 - source_axis for source_axis in reversed(source_axes)])
    for axis in sorted(range(3), key=lambda n: size[n] / (positions[n][2] - positions[n][1])):
        at, begin, end = positions[axis]
        inside = torch.from_numpy(np.clip(at - begin, 0, end - begin - 1))
        lower = inside.floor().long().clamp_(max=max(end - begin - 2, 0))
        upper = (lower + 1).clamp_(max=end - begin - 1)
        weight = (inside - lower).float()
        if axis == 2:
            values = _interpolate_between_slices(values, lower, upper, weight)
        else:
            values = _interpolate_within_slices(values, 1 - axis, lower, upper, weight.view([-1, 1] if axis else [-1]))
        # A plane exactly at the end of the volume counts as inside, in spite of rounding errors.
        outside = (at < -0.5 - ROUNDING) | (at > volume.size_ijk[source_axes[axis]] - 0.5 + ROUNDING)
        if outside.any():
            values.index_fill_(2 - axis, to_device(torch.from_numpy(np.nonzero(outside)[0]), values.device), air)
    return values.permute(2, 1, 0)


def _interpolate_between_slices(values: Tensor, lower: Tensor, upper: Tensor, weight: Tensor) -> Tensor:
    """Interpolates along axis 0. On a CPU it processes one slice at a time, which avoids copies of the operands."""
    if values.device.type != "cpu":
        return _interpolate(values, 0, lower, upper, weight.view(-1, 1, 1))
    values = values.float()
    result = values.new_empty((len(weight), *values.shape[1:]))
    for out, low, high, slice_weight in zip(result, lower.tolist(), upper.tolist(), weight, strict=True):
        torch.lerp(values[low], values[high], slice_weight, out=out)
    return result


def _interpolate_within_slices(values: Tensor, axis: int, lower: Tensor, upper: Tensor, weight: Tensor) -> Tensor:
    """Interpolates along an axis of each slice. On a CPU it processes one slice at a time, which stays in the cache."""
    if values.device.type != "cpu":
        return _interpolate(values, 1 + axis, lower, upper, weight)
    shape = list(values.shape)
    shape[1 + axis] = len(lower)
    result = torch.empty(shape, dtype=torch.float32)
    for out, plane in zip(result, values, strict=True):
        begins, ends = (plane.float().index_select(axis, index) for index in (lower, upper))
        torch.lerp(begins, ends, weight, out=out)
    return result


def _interpolate(values: Tensor, axis: int, lower: Tensor, upper: Tensor, weight: Tensor) -> Tensor:
    """Interpolates ``values`` along an axis on their device; ``lower``, ``upper`` and ``weight`` are on the host."""
    begins, ends = (values.index_select(axis, to_device(index, values.device)).float() for index in (lower, upper))
    return torch.lerp(begins, ends, to_device(weight, values.device))


def _resample_oblique(
    volume: CTVolume, first: Float64, step: Float64, size: tuple[int, int, int], air: float, device: torch.device | str
) -> Tensor:
    """Resamples to a grid whose axes are tilted against those of the volume."""
    size_ijk = np.array(volume.size_ijk, np.float64)
    # In grid_sample -1 and 1 are the outer edges of the first and last voxel.
    scale = 2 / size_ijk
    offset = (first + 0.5) * scale - 1
    matrix, translation = (torch.as_tensor(of, dtype=torch.float32, device=device) for of in (step * scale, offset))
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in size]
    voxels = torch.from_numpy(volume.voxels_zyx).to(device).float()[None, None] - air
    slabs = []
    for x in torch.split(axes[0], 16):
        index = torch.stack(torch.meshgrid(x, axes[1], axes[2], indexing="ij"), -1)
        points = index @ matrix + translation
        slabs.append(F.grid_sample(voxels, points[None], align_corners=False)[0, 0])
    return torch.cat(slabs) + air
