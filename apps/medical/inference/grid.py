"""The network's grid: a piece of a CT resampled to the spacing that the network was trained at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from apps.medical.types import CTVolume, Float64, Piece
from shared.device import sent

Number = TypeVar("Number", int, float)

RIGHT_ANTERIOR_SUPERIOR = np.diag([-1.0, -1.0, 1.0])
"""Directions of the grid's axes in LPS, as columns: MONAI's orientation RAS."""

ROUNDING = 1e-6
"""Of places, in voxels."""


@dataclass(frozen=True, slots=True)
class Grid:
    """``size`` voxels along x, y, z of ``spacing_mm``; the first voxel's centre is at ``origin_lps_mm``."""

    origin_lps_mm: Float64
    spacing_mm: Float64
    size: tuple[int, int, int]

    def to_lps_mm(self, position: Float64) -> Float64:
        """Positions (n, 3) in voxels, where voxel i covers [i, i + 1], in LPS mm."""
        moved = (position - 0.5) * self.spacing_mm @ RIGHT_ANTERIOR_SUPERIOR.T
        return np.asarray(moved + self.origin_lps_mm)

    def to_voxels(self, position_lps_mm: Float64) -> Float64:
        """The inverse of ``to_lps_mm``: positions (..., 3) in voxels, where voxel i covers [i, i + 1]."""
        moved = np.asarray(position_lps_mm) - self.origin_lps_mm
        return np.asarray(moved @ RIGHT_ANTERIOR_SUPERIOR / self.spacing_mm + 0.5)

    def centres_lps_mm(self, index: Float64) -> Float64:
        return np.asarray(index * self.spacing_mm @ RIGHT_ANTERIOR_SUPERIOR.T + self.origin_lps_mm)


def reorient_to_lps(volume: CTVolume) -> CTVolume:
    """The same volume with its axes in the order and direction nearest to LPS, however it was stored."""
    order, signs = _turn(volume)
    if order == (0, 1, 2) and signs == [1, 1, 1]:
        return volume
    last = np.array(volume.size_ijk) - 1
    first = [last[axis] if sign < 0 else 0 for axis, sign in sorted(zip(order, signs, strict=True))]
    turned = volume.voxels_zyx.transpose([2 - axis for axis in reversed(order)])
    turned = turned[tuple(slice(None, None, sign) for sign in reversed(signs))]
    return CTVolume(
        voxels_zyx=np.ascontiguousarray(turned),
        spacing_mm=triple(volume.spacing_mm[axis] for axis in order),
        origin_lps_mm=triple(volume.to_lps_mm(first).tolist()),
        direction=volume.direction[:, list(order)] * signs,
        name=volume.name,
    )


def stored_piece(stored: CTVolume, mask_xyz: NDArray[np.bool_], low_xyz: Sequence[int]) -> Piece:
    """The piece of ``reorient_to_lps(stored)`` whose box begins at ``low_xyz``, as a piece of ``stored``."""
    order, signs = _turn(stored)
    low = [0, 0, 0]
    for row, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        low[axis] = low_xyz[row] if sign > 0 else stored.size_ijk[axis] - low_xyz[row] - mask_xyz.shape[row]
    turned = mask_xyz[tuple(slice(None, None, sign) for sign in signs)].transpose(
        [order.index(axis) for axis in range(3)]
    )
    return Piece(low_ijk=triple(low), size_ijk=triple(turned.shape), bits=np.packbits(turned).tobytes())


def _turn(volume: CTVolume) -> tuple[tuple[int, int, int], list[int]]:
    """Which of i, j, k runs along x, y and z, and whether (1) or against it (-1)."""
    order = _nearest_axes(volume.direction)
    return order, [1 if volume.direction[row, axis] >= 0 else -1 for row, axis in enumerate(order)]


def _nearest_axes(direction: Float64) -> tuple[int, int, int]:
    """Which of i, j, k runs most nearly along x, y and z; each is taken once."""
    size = np.abs(direction)
    orders = [triple(order) for order in permutations(range(3))]
    return max(orders, key=lambda order: float(sum(size[row, order[row]] for row in range(3))))


def triple(values: Iterable[Number]) -> tuple[Number, Number, Number]:
    """The values along x, y and z (or i, j and k)."""
    first, second, third = values
    return first, second, third


def cover(
    volume: CTVolume,
    low_ijk: tuple[int, int, int],
    high_ijk: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    strides: Sequence[int],
) -> Grid:
    """The smallest grid over a box of the volume's indices (high is exclusive) that begins on a lattice in space.

    The lattice's points lie ``strides`` voxels apart and one of them at the origin of the patient's coordinates. So a
    network with these strides sees the same phase whatever margin of the volume was cut off.
    """
    ends = np.array([low_ijk, np.array(high_ijk) - 1], np.float64)
    corners = np.array([[ends[a, 0], ends[b, 1], ends[c, 2]] for a in (0, 1) for b in (0, 1) for c in (0, 1)])
    along = volume.to_lps_mm(corners) @ RIGHT_ANTERIOR_SUPERIOR
    low, high = along.min(axis=0), along.max(axis=0)
    spacing = np.array(spacing_mm, np.float64)
    period = spacing * strides
    # Rounded first, so that a box that begins on the lattice stays there.
    low = np.floor(np.round(low / period, 6)) * period
    size = triple(int(n) for n in np.floor((high - low) / spacing + ROUNDING) + 1)
    return Grid(low @ RIGHT_ANTERIOR_SUPERIOR.T, spacing, size)


def resample(
    volume: CTVolume, grid: Grid, window_hu: tuple[float, float], device: torch.device | str = "cpu"
) -> Tensor:
    """The volume on the grid, linearly interpolated, HU in ``window_hu`` on 0..1, shape (X, Y, Z); 0 outside."""
    first = volume.to_index_ijk(grid.centres_lps_mm(np.zeros(3)))
    step = (RIGHT_ANTERIOR_SUPERIOR.T * grid.spacing_mm[:, None]) @ volume.direction / volume.spacing_mm
    low, high = window_hu
    if np.all(np.sum(np.abs(step) > 1e-4 * np.abs(step).max(axis=1, keepdims=True), axis=1) == 1):
        values = _axis_by_axis(volume, first, step, grid.size, low, device)
    else:
        values = _oblique(volume, first, step, grid.size, low, device)
    return values.sub_(low).div_(high - low).clamp_(0, 1)


def averaged(image: Tensor, times: int) -> Tensor:
    """The means (X', Y', Z') of so many voxels along each axis; where the image ends within one, the rest is zeros."""
    # In the order z, y, x, in which ``resample`` leaves the voxels in memory: whole slices first, then whole rows. One
    # axis after the other takes a third of the time of a pooling in 3D.
    sums = image.permute(2, 1, 0)
    for axis in range(3):
        sums = _summed(sums, axis, times)
    return sums.div_(times**3).permute(2, 1, 0)


def _summed(values: Tensor, axis: int, times: int) -> Tensor:
    """The sums of so many neighbours along an axis; the last may be of fewer."""
    first, *others = (values[(slice(None),) * axis + (slice(n, None, times),)] for n in range(times))
    if others and others[0].shape == first.shape:
        total, others = first + others[0], others[1:]
    else:
        total = first.clone()
    for other in others:
        total.narrow(axis, 0, other.shape[axis]).add_(other)
    return total


def _axis_by_axis(
    volume: CTVolume, first: Float64, step: Float64, size: tuple[int, int, int], air: float, device: torch.device | str
) -> Tensor:
    """Where the axes are parallel, linear interpolation is one pass along each."""
    source = [int(np.argmax(np.abs(row))) for row in step]
    crop, positions = {}, {}
    for axis, along in enumerate(source):
        at = first[along] + step[axis, along] * np.arange(size[axis])
        begin = int(np.clip(np.floor(at.min()), 0, volume.size_ijk[along] - 1))
        end = int(np.clip(np.ceil(at.max()) + 1, begin + 1, volume.size_ijk[along]))
        crop[along], positions[axis] = slice(begin, end), (at, begin, end)
    part = volume.voxels_zyx[crop[2], crop[1], crop[0]]
    # In the order z, y, x, in which the voxels of an axial scan lie, whole rows and slices are copied.
    values = torch.from_numpy(np.ascontiguousarray(part)).to(device).permute([2 - along for along in reversed(source)])
    for axis in sorted(range(3), key=lambda n: size[n] / (positions[n][2] - positions[n][1])):
        at, begin, end = positions[axis]
        inside = torch.from_numpy(np.clip(at - begin, 0, end - begin - 1))
        lower = inside.floor().long().clamp_(max=max(end - begin - 2, 0))
        upper = (lower + 1).clamp_(max=end - begin - 1)
        weight = (inside - lower).float()
        if axis == 2:
            values = _between_slices(values, lower, upper, weight)
        else:
            values = _within_slices(values, 1 - axis, lower, upper, weight.view([-1, 1] if axis else [-1]))
        # A plane at the very end of the volume is in it, however its place was rounded.
        beyond = (at < -0.5 - ROUNDING) | (at > volume.size_ijk[source[axis]] - 0.5 + ROUNDING)
        if beyond.any():
            values.index_fill_(2 - axis, sent(torch.from_numpy(np.nonzero(beyond)[0]), values.device), air)
    return values.permute(2, 1, 0)


def _between_slices(values: Tensor, lower: Tensor, upper: Tensor, weight: Tensor) -> Tensor:
    """Interpolated along axis 0; on a CPU one slice after the other, so that none is copied to be interpolated."""
    if values.device.type != "cpu":
        return _interpolated(values, 0, lower, upper, weight.view(-1, 1, 1))
    values = values.float()
    found = values.new_empty((len(weight), *values.shape[1:]))
    for out, low, high, share in zip(found, lower.tolist(), upper.tolist(), weight, strict=True):
        torch.lerp(values[low], values[high], share, out=out)
    return found


def _within_slices(values: Tensor, axis: int, lower: Tensor, upper: Tensor, weight: Tensor) -> Tensor:
    """Interpolated along an axis of each slice; on a CPU one slice after the other, each in the cache meanwhile."""
    if values.device.type != "cpu":
        return _interpolated(values, 1 + axis, lower, upper, weight)
    shape = list(values.shape)
    shape[1 + axis] = len(lower)
    found = torch.empty(shape, dtype=torch.float32)
    for out, piece in zip(found, values, strict=True):
        begins, ends = (piece.float().index_select(axis, index) for index in (lower, upper))
        torch.lerp(begins, ends, weight, out=out)
    return found


def _interpolated(values: Tensor, axis: int, lower: Tensor, upper: Tensor, weight: Tensor) -> Tensor:
    """Interpolated along an axis of a device; ``lower``, ``upper`` and ``weight`` are on the host."""
    begins, ends = (values.index_select(axis, sent(index, values.device)).float() for index in (lower, upper))
    return torch.lerp(begins, ends, sent(weight, values.device))


def _oblique(
    volume: CTVolume, first: Float64, step: Float64, size: tuple[int, int, int], air: float, device: torch.device | str
) -> Tensor:
    """Where the axes are tilted against each other."""
    limit = np.array(volume.size_ijk, np.float64)
    # grid_sample counts from -1 to 1 over the voxels' outer edges.
    scale = 2 / limit
    offset = (first + 0.5) * scale - 1
    matrix, moved = (torch.as_tensor(of, dtype=torch.float32, device=device) for of in (step * scale, offset))
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in size]
    voxels = torch.from_numpy(volume.voxels_zyx).to(device).float()[None, None] - air
    pieces = []
    for x in torch.split(axes[0], 16):
        index = torch.stack(torch.meshgrid(x, axes[1], axes[2], indexing="ij"), -1)
        points = index @ matrix + moved
        pieces.append(F.grid_sample(voxels, points[None], align_corners=False)[0, 0])
    return torch.cat(pieces) + air
