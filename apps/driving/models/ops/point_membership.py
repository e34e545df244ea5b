"""Tests which points lie in which boxes, with the signatures of ``mmcv._ext``.

Boxes are x, y, z of the bottom face's centre, sizes along x, y and z, and yaw about z. As in mmcv, a point on the top
or bottom face is inside, a point on a side face is not, and the computation is in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MAX_PAIRS = 1 << 22


def points_in_boxes_cpu_forward(boxes_T7: Tensor, points_M3: Tensor, indices_TM: Tensor) -> None:
    """Writes 1 to ``indices_TM`` if a point lies in a box, else 0."""
    indices_TM.copy_(_inside(points_M3, boxes_T7).t())


def points_in_boxes_all_forward(boxes_BT7: Tensor, points_BM3: Tensor, indices_BMT: Tensor) -> None:
    """Writes 1 to ``indices_BMT`` if a point lies in a box; other entries are unchanged."""
    for boxes, points, indices in zip(boxes_BT7, points_BM3, indices_BMT, strict=True):
        indices.masked_fill_(_inside(points, boxes), 1)


def points_in_boxes_part_forward(boxes_BT7: Tensor, points_BM3: Tensor, index_BM: Tensor) -> None:
    """Writes the index of the first box that contains a point to ``index_BM``; other entries are unchanged."""
    if not boxes_BT7.shape[1]:
        return
    for boxes, points, index in zip(boxes_BT7, points_BM3, index_BM, strict=True):
        inside = _inside(points, boxes)
        index.copy_(torch.where(inside.any(1), inside.int().argmax(1).to(index.dtype), index))


def _inside(points_M3: Tensor, boxes_T7: Tensor) -> Tensor:
    """(M, T) whether each point lies in each box."""
    rows = max(1, _MAX_PAIRS // max(1, len(boxes_T7)))
    blocks = [_inside_block(block, boxes_T7) for block in torch.split(points_M3, rows)]
    return torch.cat(blocks) if blocks else points_M3.new_zeros(0, len(boxes_T7), dtype=torch.bool)


def _inside_block(points_M3: Tensor, boxes_T7: Tensor) -> Tensor:
    points, boxes = points_M3.float(), boxes_T7.float()
    dx, dy = points[:, None, 0] - boxes[:, 0], points[:, None, 1] - boxes[:, 1]
    half = boxes[:, 3:6] / 2
    height = (points[:, None, 2] - (boxes[:, 2] + half[:, 2])).abs()
    cosine, sine = boxes[:, 6].cos(), boxes[:, 6].sin()
    along, across = dx * cosine + dy * sine, dy * cosine - dx * sine
    return (height <= half[:, 2]) & (along.abs() < half[:, 0]) & (across.abs() < half[:, 1])
