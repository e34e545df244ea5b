"""Points to voxels, with the signatures of ``mmcv._ext``. No loop over points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
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

    For each of V voxels, ``cell`` (V, 3) as z, y, x and ``count`` (V,) of points.
    """

    source: Tensor
    voxel: Tensor
    slot: Tensor
    cell: Tensor
    count: Tensor

    def first(self, most: int) -> Grouped:
        """No more than the first ``most`` points of each voxel, for points that stand voxel by voxel."""
        if not len(self.count) or int(self.count.max()) <= most:
            return self
        rank = torch.arange(len(self.voxel), device=self.voxel.device)
        rank -= (self.count.cumsum(0) - self.count)[self.voxel]
        kept = rank < most
        return Grouped(self.source[kept], self.voxel[kept], rank[kept], self.cell, self.count.clamp(max=most))


def group_pillars(points: Tensor, voxel_size: Tensor, coors_range: Tensor) -> Grouped:
    """Which of the points (N, 3 or more) lie in which voxel, every one of them; voxels by their place in the grid.

    Points stand voxel by voxel, those of one in the order in which they came; ``slot`` is empty.
    """
    cell, valid, shape = _cells(points, voxel_size, coors_range)
    source = valid.nonzero().squeeze(1)
    inside = cell if len(source) == len(cell) else cell[source]
    x, y, z = inside.long().unbind(1)
    place, source = _in_order((z * shape[1] + y) * shape[2] + x, source, len(points))
    opens = torch.ones_like(place, dtype=torch.bool)
    opens[1:] = place[1:] != place[:-1]
    start, voxel = opens.nonzero().squeeze(1), opens.cumsum(0) - 1
    count = torch.diff(start, append=start.new_full((1,), len(place)))
    there = place[start]
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
    key, source = _in_order(key, source, len(points))
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


def _in_order(key: Tensor, source: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """Keys and the numbers of their points in rising order of the keys, those of one key in the points' own order.

    The points come in rising order of their numbers, of which there are ``points``.
    """
    if key.device.type == "cpu":
        order = torch.from_numpy(_stable_order(key.numpy()))
        return key[order], source[order]
    # The key in the upper bits and the number in the lower: one sort puts both in order.
    bits = points.bit_length()
    both = ((key << bits) | source).sort()[0]
    return both >> bits, both & ((1 << bits) - 1)


def _stable_order(key: NDArray[np.int64]) -> NDArray[np.int64]:
    """The order that sorts keys of 0 or more, equal ones as they come: 16 bits at a time, from the lowest.

    NumPy sorts numbers of 16 bits by counting them, ten times as fast as larger ones by comparing.
    """
    order = np.argsort((key & 0xFFFF).astype(np.uint16), kind="stable")
    largest = int(key.max(initial=0))
    for shift in range(16, largest.bit_length(), 16):
        digit = ((key[order] >> shift) & 0xFFFF).astype(np.uint16)
        order = order[np.argsort(digit, kind="stable")]
    return order
