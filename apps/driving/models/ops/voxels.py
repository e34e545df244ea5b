"""Points to voxels, with the signatures of ``mmcv._ext``. No loop over points."""

from __future__ import annotations

import torch
from torch import Tensor

# Above this many cells the table of first points is made over the occupied cells alone.
_TABLE = 1 << 23


def _cells(points: Tensor, size: Tensor, extent: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """Cell (N, 3) int64 as z, y, x; whether each point is within the extent (N,); and the grid's shape z, y, x."""
    size, extent = size.to(points.device, points.dtype), extent.to(points.device, points.dtype)
    grid = ((extent[3:] - extent[:3]) / size).round()
    cell = ((points[:, :3] - extent[:3]) / size).floor()
    # Compared as floating point: a far point would overflow an integer. NaN compares false.
    valid = ((cell >= 0) & (cell < grid)).all(dim=1)
    cell = torch.where(valid[:, None], cell, torch.zeros_like(cell)).long()
    return cell.flip(1), valid, [int(n) for n in grid.flip(0).tolist()]


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
    cell, valid, (depth, height, width) = _cells(points, voxel_size, coors_range)
    source = valid.nonzero().squeeze(1)
    if not len(source):
        voxel_num.fill_(0)
        return
    cell = cell[source]
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
    source, rank, opens, cell = source[kept], rank[kept], opens[kept], cell[kept]
    count = int(opens.sum())
    order = rank.to(torch.int32).argsort(stable=True)
    totals = torch.bincount(rank, minlength=count)
    start = totals.cumsum(0) - totals
    rank, source = rank[order], source[order]
    slot = torch.arange(len(rank), device=rank.device) - start[rank]
    fits = slot < max_points
    voxels.view(-1, voxels.shape[-1])[rank[fits] * voxels.shape[1] + slot[fits]] = points[source[fits]]
    coors[:count] = cell[opens].to(coors.dtype)
    num_points_per_voxel[:count] = totals.clamp(max=max_points).to(num_points_per_voxel.dtype)
    voxel_num.fill_(count)
