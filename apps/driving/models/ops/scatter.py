"""Features of points reduced to features of voxels, with the signatures of ``mmcv._ext``. No loop over points."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor


def dynamic_point_to_voxel_forward(feats: Tensor, coors: Tensor, reduce_type: str) -> tuple[Tensor, ...]:
    """Reduces the features (N, C) of points that share a cell ``coors`` (N, D) by ``max``, ``sum`` or ``mean``.

    Returns the features (M, C) and cells (M, D) of the voxels, sorted by cell, the voxel (N,) of each point, -1 for
    points with a negative coordinate, which are left out, and how many points (M,) each voxel has. As mmcv's CUDA
    operator does; mmcv has none for the CPU.
    """
    if not len(feats):
        nothing = coors.new_empty(0, dtype=torch.int32)
        return feats.clone(), coors.clone(), nothing, nothing.clone()
    cells, voxel, count = _unique_rows(coors.masked_fill((coors < 0).any(dim=1, keepdim=True), -1))
    if bool(cells[0, 0] < 0):
        cells, voxel, count = cells[1:], voxel - 1, count[1:]
    inside = voxel >= 0
    target = voxel[inside][:, None].expand(-1, feats.shape[1])
    reduced = feats.new_zeros(len(cells), feats.shape[1])
    if reduce_type == "max":
        reduced.scatter_reduce_(0, target, feats[inside], "amax", include_self=False)
    else:
        reduced.scatter_add_(0, target, feats[inside])
        if reduce_type == "mean":
            reduced /= count[:, None].to(reduced.dtype)
    return reduced, cells, voxel.int(), count.int()


def dynamic_point_to_voxel_backward(
    grad_feats: Tensor,
    grad_reduced_feats: Tensor,
    feats: Tensor,
    reduced_feats: Tensor,
    coors_idx: Tensor,
    reduce_count: Tensor,
    reduce_type: str,
) -> None:
    """Writes the gradients (N, C) of the points' features into ``grad_feats``.

    A maximum that several points share gives its gradient to the first of them.
    """
    grad_feats.zero_()
    inside = (coors_idx >= 0).nonzero().squeeze(1)
    voxel = coors_idx[inside].long()
    if not len(inside):
        return
    if reduce_type != "max":
        weight = 1 / reduce_count[voxel, None].to(grad_feats.dtype) if reduce_type == "mean" else 1
        grad_feats[inside] = grad_reduced_feats[voxel] * weight
        return
    largest = feats[inside] == reduced_feats[voxel]
    candidates = torch.where(largest, inside[:, None], len(feats))
    first = torch.full(reduced_feats.shape, len(feats), dtype=torch.long, device=feats.device)
    first.scatter_reduce_(0, voxel[:, None].expand_as(candidates), candidates, "amin")
    # A row more, for maxima that no point has: not a number is equal to none.
    widened = grad_feats.new_zeros(len(feats) + 1, feats.shape[1])
    widened.scatter_(0, first, grad_reduced_feats)
    grad_feats.copy_(widened[:-1])


def _unique_rows(rows_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``torch.unique`` of rows of integers from -1, with inverse and counts; by one number a row where it fits."""
    sizes = (rows_ND.amax(0) + 2).tolist()
    if prod(sizes) >= 1 << 62:
        found: tuple[Tensor, Tensor, Tensor] = torch.unique(rows_ND, dim=0, return_inverse=True, return_counts=True)
        return found
    key = torch.zeros(len(rows_ND), dtype=torch.long, device=rows_ND.device)
    for column, size in zip(rows_ND.unbind(1), sizes, strict=True):
        key = key * size + column + 1
    keys, inverse, counts = torch.unique(key, return_inverse=True, return_counts=True)
    columns = []
    for size in reversed(sizes):
        columns.append(keys % size - 1)
        keys = keys // size
    return torch.stack(columns[::-1], dim=1).to(rows_ND.dtype), inverse, counts
