"""Points to voxels, with the signatures of ``mmcv._ext``. No loop over points."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Above this many cells the table of first points is made over the occupied cells alone.
_TABLE = 1 << 23


def _cells(points: Tensor, size: Tensor, extent: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """Cell (N, 3) int64 as z, y, x; whether each point is within the extent (N,); and the grid's shape z, y, x."""
    size, extent = size.to(points.dtype), extent.to(points.dtype)
    grid = ((extent[3:] - extent[:3]) / size).round()
    # mmcv hands size and extent over on the host: read there, the shape costs no wait for the device.
    shape = [int(n) for n in grid.flip(0).tolist()]
    size, extent, grid = (value.to(points.device, non_blocking=True) for value in (size, extent, grid))
    cell = ((points[:, :3] - extent[:3]) / size).floor()
    # Compared as floating point: a far point would overflow an integer. NaN compares false.
    valid = ((cell >= 0) & (cell < grid)).all(dim=1)
    cell = torch.where(valid[:, None], cell, torch.zeros_like(cell)).long()
    return cell.flip(1), valid, shape


def dynamic_voxelize_forward(points: Tensor, voxel_size: Tensor, coors_range: Tensor, coors: Tensor, NDim: int) -> None:
    """Writes the cell (z, y, x) of each point (N, 3 or more) into ``coors`` (N, 3); -1 outside the range.

    ``voxel_size`` (3,) and ``coors_range`` (6,: minima, then maxima) are in the points' unit.
    """
    cell, valid, _ = _cells(points, voxel_size, coors_range)
    coors.copy_(torch.where(valid[:, None], cell, -torch.ones_like(cell)))


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
    """Points sorted by voxel: ``source`` (K,) into the points, ``voxel`` (K,) and ``slot`` (K,) within it.

    For each of V voxels ``cell`` (V, 3) as z, y, x and ``count`` (V,) of its points.
    """

    source: Tensor
    voxel: Tensor
    slot: Tensor
    cell: Tensor
    count: Tensor


def group_points(points: Tensor, voxel_size: Tensor, coors_range: Tensor, max_points: int, max_voxels: int) -> Grouped:
    """Which of the points (N, 3 or more) lie in which voxel; the first ``max_points`` of the first ``max_voxels``."""
    cell, valid, (depth, height, width) = _cells(points, voxel_size, coors_range)
    source = valid.nonzero().squeeze(1)
    cell = cell[source]
    if not len(source):
        return Grouped(source, source, source, cell, source)
    key = (cell[:, 0] * height + cell[:, 1]) * width + cell[:, 2]
    cells = depth * height * width
    if cells > _TABLE:
        occupied, key = key.unique(return_inverse=True)
        cells = len(occupied)
    position = torch.arange(len(key), device=key.device)
    first = torch.full((cells,), len(key), device=key.device).scatter_reduce_(0, key, position, "amin")[key]
    opens = first == position
    rank = (opens.cumsum(0) - 1)[first]

    kept = rank < max_voxels
    source, rank, cell, opens = source[kept], rank[kept], cell[kept], opens[kept]
    order = rank.to(torch.int32).argsort(stable=True)
    totals = torch.bincount(rank)
    start = totals.cumsum(0) - totals
    rank, source = rank[order], source[order]
    slot = torch.arange(len(rank), device=rank.device) - start[rank]
    fits = slot < max_points
    return Grouped(source[fits], rank[fits], slot[fits], cell[opens], totals.clamp(max=max_points))
