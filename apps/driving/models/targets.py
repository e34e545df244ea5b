"""What the anchors of mmdet3d's ``Anchor3DHead`` are to learn, asked of those near an object alone.

mmdet3d measures every anchor against every object: a sixth of PointPillars' training step on a CPU. Anchors that touch
no object, seen from above, are background to it whatever else there is. The others go through its own code, so that the
targets are its own, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from apps.driving.models.fast import RememberingAnchors


def use_nearby_targets(head: Any) -> None:
    """Has the head of a detector find its targets this way on a CPU, where it is one that this knows."""
    if knows(head):
        head.prior_generator = RememberingAnchors(head.prior_generator)
        head.anchor_target_3d = NearbyTargets(head)


def knows(head: Any) -> bool:
    """Whether an anchor without overlap is always background to the head, and anchors lie on one upright grid."""
    from mmdet3d.models.dense_heads import Anchor3DHead
    from mmdet3d.models.task_modules import AlignedAnchor3DRangeGenerator, Max3DIoUAssigner
    from mmdet3d.structures.ops import BboxOverlapsNearest3D

    if type(head) is not Anchor3DHead or not isinstance(head.bbox_assigner, list) or head.sampling:
        return False
    generator = head.prior_generator
    if type(generator) is not AlignedAnchor3DRangeGenerator or generator.num_levels != 1 or generator.reshape_out:
        return False
    return head.assign_per_class and all(
        type(one) is Max3DIoUAssigner
        and type(one.iou_calculator) is BboxOverlapsNearest3D
        and one.iou_calculator.coordinate == "lidar"
        and isinstance(one.neg_iou_thr, float)
        and min(one.pos_iou_thr, one.neg_iou_thr, one.min_pos_iou) > 0
        for one in head.bbox_assigner
    )


class NearbyTargets:
    """Takes the place of ``anchor_target_3d`` of the head, whose anchors are the same tensors at every step."""

    def __init__(self, head: Any) -> None:
        self._head, self._original = head, head.anchor_target_3d
        self._grid: Tensor | None = None

    def __call__(
        self, anchor_list: list[list[Tensor]], truths: Sequence[Any], metas: Sequence[Any], **options: Any
    ) -> Any:
        """Labels, their weights, boxes, their weights, directions, their weights: (B, N, ...) of one level each."""
        grid = anchor_list[0][0]
        ignored = options.get("batch_gt_instances_ignore")
        if grid.device.type != "cpu" or ignored is not None or not self._measured(grid):
            return self._original(anchor_list, truths, metas, **options)
        rows, columns, kinds, turns, code = grid.shape[1:]
        shape = (len(truths), rows * columns, kinds, turns)
        labels = torch.full(shape, options["num_classes"])
        weights = grid.new_ones(shape)
        boxes, box_weights = grid.new_zeros(*shape, code), grid.new_zeros(*shape, code)
        directions, direction_weights = torch.zeros(shape, dtype=torch.long), grid.new_zeros(shape)
        whole = (labels, weights, boxes, box_weights, directions, direction_weights)
        positive = negative = 0
        for image, truth in enumerate(truths):
            of_image = background = 0
            for kind, assigner in enumerate(self._head.bbox_assigner):
                mine = truth[truth.labels_3d == kind]
                near = self._near(kind, mine.bboxes_3d)
                cell, turn = near.nonzero(as_tuple=True)
                background += near.numel() - len(cell)
                if not len(cell):
                    continue
                anchors = self._anchors[kind][cell, turn]
                found = self._head.anchor_target_single_assigner(
                    assigner, anchors, mine, None, metas[image], options["num_classes"], False
                )
                for target, part in zip(whole, found, strict=False):
                    target[image, cell, kind, turn] = part
                of_image += len(found[6])
                background += len(found[7])
            positive += max(of_image, 1)
            negative += max(background, 1)
        flat = [[target.flatten(1, 3)] for target in whole]
        return *flat, positive, negative

    def _measured(self, grid: Tensor) -> bool:
        """Takes the extent of the anchors' columns and rows, once for a grid; False where they are not aligned."""
        from mmdet3d.structures import LiDARInstance3DBoxes

        if self._grid is not grid:
            _, rows, columns, kinds, turns, code = grid.shape
            flat = LiDARInstance3DBoxes(grid.reshape(-1, code)).nearest_bev
            extent = flat.view(rows, columns, kinds, turns, 4)
            self._across, self._along = extent[0, ..., 0::2], extent[:, 0, ..., 1::2]
            self._anchors = [part.reshape(-1, turns, code) for part in grid[0].unbind(2)]
            self._grid = grid
            self._aligned = grid.shape[0] == 1 and bool(
                (extent[..., 0::2] == self._across).all() and (extent[..., 1::2] == self._along[:, None]).all()
            )
        return self._aligned

    def _near(self, kind: int, boxes: Any) -> Tensor:
        """(rows x columns, turns) whether an anchor of the class overlaps one of the boxes, seen from above."""
        across, along = self._across[:, kind], self._along[:, kind]
        touches = []
        nearest = boxes.nearest_bev
        for places, ends in ((along, nearest[:, 1::2]), (across, nearest[:, 0::2])):
            low, high = (end[:, None, None] for end in ends.unbind(1))
            touches.append((places[None, ..., 0] < high) & (places[None, ..., 1] > low))
        rows, columns = (touch.float().permute(2, 0, 1) for touch in touches)  # (turns, boxes, places)
        near: Tensor = rows.transpose(1, 2) @ columns > 0
        return near.flatten(1).t()
