"""Reduces features of points to features of voxels, with the signatures of ``mmcv._ext``. No loop over points."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor


def dynamic_point_to_voxel_forward(feats: Tensor, coors: Tensor, reduce_type: str) -> tuple[Tensor, ...]:
    """Reduces the features (N, C) of points in the same cell ``coors`` (N, D) by ``max``, ``sum`` or ``mean``.

    Returns the features (M, C) and cells (M, D) of the voxels, sorted by cell; the voxel (N,) of each point, -1 for
    points with a negative coordinate, which are skipped; and the number of points (M,) in each voxel. Equals mmcv's
    CUDA operator; mmcv has none for the CPU.
    """
    if not len(feats):
        empty = coors.new_empty(0, dtype=torch.int32)
        return feats.clone(), coors.clone(), empty, empty.clone()
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
    """Writes the gradients (N, C) of the points' features to ``grad_feats``.

    If several points share a maximum, the first of them gets its gradient.
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
    is_maximum = feats[inside] == reduced_feats[voxel]
    candidates = torch.where(is_maximum, inside[:, None], len(feats))
    first_point = torch.full(reduced_feats.shape, len(feats), dtype=torch.long, device=feats.device)
    first_point.scatter_reduce_(0, voxel[:, None].expand_as(candidates), candidates, "amin")
    # One extra row for maxima that no point equals, because NaN equals nothing.
    padded_grad = grad_feats.new_zeros(len(feats) + 1, feats.shape[1])
    padded_grad.scatter_(0, first_point, grad_reduced_feats)
    grad_feats.copy_(padded_grad[:-1])


def _unique_rows(rows_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``torch.unique`` of rows of integers >= -1, with inverse and counts; by one 62-bit key per row if it suffices."""
    sizes = (rows_ND.amax(0) + 2).tolist()
    if prod(sizes) >= 1 << 62:
        unique: tuple[Tensor, Tensor, Tensor] = torch.unique(rows_ND, dim=0, return_inverse=True, return_counts=True)
        return unique
    key = torch.zeros(len(rows_ND), dtype=torch.long, device=rows_ND.device)
    for column, size in zip(rows_ND.unbind(1), sizes, strict=True):
        key = key * size + column + 1
    keys, inverse, counts = torch.unique(key, return_inverse=True, return_counts=True)
    columns = []
    for size in reversed(sizes):
        columns.append(keys % size - 1)
        keys = keys // size
    return torch.stack(columns[::-1], dim=1).to(rows_ND.dtype), inverse, counts
