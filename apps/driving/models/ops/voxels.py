"""Points to voxels, with the signatures of ``mmcv._ext``. No loop over points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def _cells(points: Tensor, size: Tensor, extent: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """Cell (N, 3) as x, y, z in floating point; whether each point is within (N,); and the grid's shape z, y, x."""
    size, extent = size.to(points.dtype), extent.to(points.dtype)
    grid = ((extent[3:] - extent[:3]) / size).round()
    # mmcv hands size and extent over on the host: read there, the shape costs no wait for the device.
    shape = [int(n) for n in grid.flip(0).tolist()]
    size, extent, grid = (value.to(points.device, non_blocking=True) for value in (size, extent, grid))
    cell = ((points[:, :3] - extent[:3]) / size).floor()
    # Compared as floating point: a far point would overflow an integer. NaN compares false.
    valid = torch.ones(len(cell), dtype=torch.bool, device=cell.device)
    for column, count in zip(cell.unbind(1), grid, strict=True):
        valid &= (column >= 0) & (column < count)
    return cell, valid, shape


def dynamic_voxelize_forward(points: Tensor, voxel_size: Tensor, coors_range: Tensor, coors: Tensor, NDim: int) -> None:
    """Writes the cell (z, y, x) of each point (N, 3 or more) into ``coors`` (N, 3); -1 outside the range.

    ``voxel_size`` (3,) and ``coors_range`` (6,: minima, then maxima) are in the points' unit.
    """
    cell, valid, _ = _cells(points, voxel_size, coors_range)
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
    """Gathers points (N, F) into voxels in the order in which both come; always deterministic.

    Fills ``voxels`` (max_voxels, max_points, F), ``coors`` (max_voxels, 3: z, y, x), ``num_points_per_voxel``
    (max_voxels,) and the scalar ``voxel_num``. A voxel's first ``max_points`` points are kept, and the first
    ``max_voxels`` voxels.
    """
    grouped = group_points(points, voxel_size, coors_range, max_points, max_voxels)
    count = len(grouped.cell)
    rows = grouped.voxel * voxels.shape[1] + grouped.slot
    voxels.view(-1, voxels.shape[-1])[rows] = points[grouped.source]
    coors[:count] = grouped.cell.to(coors.dtype)
    num_points_per_voxel[:count] = grouped.count.to(num_points_per_voxel.dtype)
    voxel_num.fill_(count)


@dataclass(frozen=True, slots=True)
class Grouped:
    """Points voxel by voxel: ``source`` (K,) into the points, ``voxel`` (K,) and ``slot`` (K,) within it.

    For each of V voxels, in the order of their first points, ``cell`` (V, 3) as z, y, x and ``count`` (V,) of points.
    """

    source: Tensor
    voxel: Tensor
    slot: Tensor
    cell: Tensor
    count: Tensor

    def first(self, most: int) -> Grouped:
        """No more than the first ``most`` points of each voxel; ``slot`` is left as empty as it may be."""
        if not len(self.count) or int(self.count.max()) <= most:
            return self
        order = self.voxel.argsort(stable=True)
        rank = torch.arange(len(order), device=order.device) - (self.count.cumsum(0) - self.count)[self.voxel[order]]
        kept = order[rank < most]
        return Grouped(self.source[kept], self.voxel[kept], self.slot[:0], self.cell, self.count.clamp(max=most))


def group_pillars(points: Tensor, voxel_size: Tensor, coors_range: Tensor) -> Grouped:
    """Which of the points (N, 3 or more) lie in which voxel, every one of them; voxels by their place in the grid.

    In no order of points there is nothing to sort; ``slot`` is empty.
    """
    cell, valid, shape = _cells(points, voxel_size, coors_range)
    source = valid.nonzero().squeeze(1)
    x, y, z = cell[source].long().unbind(1)
    place = (z * shape[1] + y) * shape[2] + x
    taken = torch.zeros(shape[0] * shape[1] * shape[2], dtype=torch.bool, device=points.device)
    taken[place] = True
    voxel = (taken.cumsum(0) - 1)[place]
    there = taken.nonzero().squeeze(1)
    count = torch.bincount(voxel, minlength=len(there))
    cells = torch.stack([there // (shape[1] * shape[2]), there // shape[2] % shape[1], there % shape[2]], dim=1)
    return Grouped(source, voxel, source.new_zeros(0), cells, count)


def group_points(points: Tensor, voxel_size: Tensor, coors_range: Tensor, max_points: int, max_voxels: int) -> Grouped:
    """Which of the points (N, 3 or more) lie in which voxel; the first ``max_points`` of the first ``max_voxels``."""
    cell, valid, (_, height, width) = _cells(points, voxel_size, coors_range)
    source = valid.nonzero().squeeze(1)
    if not len(source):
        return Grouped(source, source, source, source.new_zeros(0, 3), source)
    x, y, z = cell[source].long().unbind(1)
    key = (z * height + y) * width + x
    # The cell in the upper bits and the place among the points in the lower: one sort puts both in order.
    bits = len(points).bit_length()
    ordered = _sorted((key << bits) | source)
    key, source = ordered >> bits, ordered & ((1 << bits) - 1)
    opens = torch.ones_like(key, dtype=torch.bool)
    opens[1:] = key[1:] != key[:-1]
    start, group = opens.nonzero().squeeze(1), opens.cumsum(0) - 1
    by_first = source[start].argsort()
    rank = torch.empty_like(by_first)
    rank[by_first] = torch.arange(len(rank), device=rank.device)
    voxel, slot = rank[group], torch.arange(len(group), device=group.device) - start[group]
    end = torch.cat([start[1:], start.new_tensor([len(key)])])
    chosen = by_first[:max_voxels]
    count = (end - start)[chosen].clamp(max=max_points)
    fits = (slot < max_points) & (voxel < max_voxels)
    key = key[start[chosen]]
    cell = torch.stack([key // (height * width), key // width % height, key % width], dim=1)
    return Grouped(source[fits], voxel[fits], slot[fits], cell, count)


def _sorted(keys: Tensor) -> Tensor:
    """In rising order; NumPy sorts integers several times as fast as torch does."""
    return torch.from_numpy(np.sort(keys.numpy())) if keys.device.type == "cpu" else keys.sort()[0]
