"""Voxelises points, with the signatures of ``mmcv._ext``. No loop over points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def _voxel_coordinates(points: Tensor, size: Tensor, extent: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """Cell (N, 3) as x, y, z in floating point; whether each point is in range (N,); and the grid's shape z, y, x."""
    size, extent = size.to(points.dtype), extent.to(points.dtype)
    grid = ((extent[3:] - extent[:3]) / size).round()
    # mmcv passes size and extent on the host: computing the shape there does not wait for the device.
    shape = [int(n) for n in grid.flip(0).tolist()]
    size, extent, grid = (value.to(points.device, non_blocking=True) for value in (size, extent, grid))
    cell = ((points[:, :3] - extent[:3]) / size).floor()
    # Compared in floating point, because a distant point would overflow an integer. NaN compares false.
    valid = torch.ones(len(cell), dtype=torch.bool, device=cell.device)
    for column, count in zip(cell.unbind(1), grid, strict=True):
        valid &= (column >= 0) & (column < count)
    return cell, valid, shape


def dynamic_voxelize_forward(points: Tensor, voxel_size: Tensor, coors_range: Tensor, coors: Tensor, NDim: int) -> None:
    """Writes the cell (z, y, x) of each point (N, 3 or more) to ``coors`` (N, 3); -1 outside the range.

    ``voxel_size`` (3,) and ``coors_range`` (6,: minima, then maxima) are in the points' unit.
    """
    cell, valid, _ = _voxel_coordinates(points, voxel_size, coors_range)
    coors.copy_(torch.where(valid[:, None], cell.flip(1), -torch.ones_like(cell)))


def hard_voxelize_forward(
    points: Tensor,
    voxel_size: Tensor,
    coors_range: Tensor,
    voxels: Tensor,
    coors: Tensor,
    num_points_per_voxel: Tensor,
    voxel_num: Tensor,
    max_points: int,
    max_voxels: int,
    NDim: int = 3,
    deterministic: bool = True,
) -> None:
    """Groups points (N, F) into voxels, both in order of first occurrence; always deterministic.

    Fills ``voxels`` (max_voxels, max_points, F), ``coors`` (max_voxels, 3: z, y, x), ``num_points_per_voxel``
    (max_voxels,) and the scalar ``voxel_num``. The first ``max_points`` points of a voxel and the first ``max_voxels``
    voxels are kept.
    """
    grouped = group_points(points, voxel_size, coors_range, max_points, max_voxels)
    count = len(grouped.cell)
    rows = grouped.voxel * voxels.shape[1] + grouped.slot
    voxels.view(-1, voxels.shape[-1])[rows] = points[grouped.source]
    coors[:count] = grouped.cell.to(coors.dtype)
    num_points_per_voxel[:count] = grouped.count.to(num_points_per_voxel.dtype)
    voxel_num.fill_(count)


@dataclass(frozen=True, slots=True)
class GroupedPoints:
    """Points grouped by voxel: ``source`` (K,) is the index of a point, ``voxel`` (K,) its voxel, ``slot`` (K,) its
    position in the voxel.

    For each of V voxels, ``cell`` (V, 3) is z, y, x and ``count`` (V,) the number of points.
    """

    source: Tensor
    voxel: Tensor
    slot: Tensor
    cell: Tensor
    count: Tensor

    def first(self, max_points: int) -> GroupedPoints:
        """At most the first ``max_points`` points of each voxel; the points must be sorted by voxel."""
        if not len(self.count) or int(self.count.max()) <= max_points:
            return self
        rank = torch.arange(len(self.voxel), device=self.voxel.device)
        rank -= (self.count.cumsum(0) - self.count)[self.voxel]
        kept = rank < max_points
        return GroupedPoints(
            self.source[kept], self.voxel[kept], rank[kept], self.cell, self.count.clamp(max=max_points)
        )


def group_pillars(points: Tensor, voxel_size: Tensor, coors_range: Tensor) -> GroupedPoints:
    """Groups all points (N, 3 or more) in range by voxel; voxels are sorted by their position in the grid.

    Points are sorted by voxel, and keep their order within a voxel; ``slot`` is empty.
    """
    cell, valid, shape = _voxel_coordinates(points, voxel_size, coors_range)
    source = valid.nonzero().squeeze(1)
    inside = cell if len(source) == len(cell) else cell[source]
    x, y, z = inside.long().unbind(1)
    cell_index, source = _sort_by_key((z * shape[1] + y) * shape[2] + x, source, len(points))
    is_first = torch.ones_like(cell_index, dtype=torch.bool)
    is_first[1:] = cell_index[1:] != cell_index[:-1]
    start, voxel = is_first.nonzero().squeeze(1), is_first.cumsum(0) - 1
    count = torch.diff(start, append=start.new_full((1,), len(cell_index)))
    voxel_cell = cell_index[start]
    cells = torch.stack(
        [voxel_cell // (shape[1] * shape[2]), voxel_cell // shape[2] % shape[1], voxel_cell % shape[2]], dim=1
    )
    return GroupedPoints(source, voxel, source.new_zeros(0), cells, count)


def group_points(
    points: Tensor, voxel_size: Tensor, coors_range: Tensor, max_points: int, max_voxels: int
) -> GroupedPoints:
    """Groups points (N, 3 or more) by voxel: the first ``max_points`` points of the first ``max_voxels`` voxels."""
    cell, valid, (_, height, width) = _voxel_coordinates(points, voxel_size, coors_range)
    source = valid.nonzero().squeeze(1)
    if not len(source):
        return GroupedPoints(source, source, source, source.new_zeros(0, 3), source)
    x, y, z = cell[source].long().unbind(1)
    key = (z * height + y) * width + x
    key, source = _sort_by_key(key, source, len(points))
    is_first = torch.ones_like(key, dtype=torch.bool)
    is_first[1:] = key[1:] != key[:-1]
    start, group = is_first.nonzero().squeeze(1), is_first.cumsum(0) - 1
    order_by_first = source[start].argsort()
    rank = torch.empty_like(order_by_first)
    rank[order_by_first] = torch.arange(len(rank), device=rank.device)
    voxel, slot = rank[group], torch.arange(len(group), device=group.device) - start[group]
    end = torch.cat([start[1:], start.new_tensor([len(key)])])
    chosen = order_by_first[:max_voxels]
    count = (end - start)[chosen].clamp(max=max_points)
    is_kept = (slot < max_points) & (voxel < max_voxels)
    key = key[start[chosen]]
    cell = torch.stack([key // (height * width), key // width % height, key % width], dim=1)
    return GroupedPoints(source[is_kept], voxel[is_kept], slot[is_kept], cell, count)


def _sort_by_key(key: Tensor, source: Tensor, point_count: int) -> tuple[Tensor, Tensor]:
    """Sorts keys and their point indices ``source`` by key, stably.

    ``source`` must be in rising order, with indices below ``point_count``.
    """
    if key.device.type == "cpu":
        order = torch.from_numpy(_stable_order(key.numpy()))
        return key[order], source[order]
    # The key in the upper bits and the index in the lower bits: one sort orders both.
    bits = point_count.bit_length()
    packed = ((key << bits) | source).sort()[0]
    return packed >> bits, packed & ((1 << bits) - 1)


def _stable_order(key: NDArray[np.int64]) -> NDArray[np.int64]:
    """The stable sort order of keys >= 0: a radix sort, 16 bits at a time from the lowest.

    NumPy sorts 16-bit integers by counting, ten times as fast as it sorts larger ones by comparison.
    """
    order = np.argsort((key & 0xFFFF).astype(np.uint16), kind="stable")
    largest = int(key.max(initial=0))
    for shift in range(16, largest.bit_length(), 16):
        digit = ((key[order] >> shift) & 0xFFFF).astype(np.uint16)
        order = order[np.argsort(digit, kind="stable")]
    return order
