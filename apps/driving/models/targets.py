"""Training targets of mmdet3d's ``Anchor3DHead``, computed only for anchors near an object.

mmdet3d compares every anchor with every object, which takes a sixth of PointPillars' training step on a CPU. Anchors
that overlap no object in the bird's-eye view are always background to it. The others go through mmdet3d's own code, so
that the targets equal its own bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from apps.driving.models.fast import CachedAnchors


def use_nearby_targets(head: Any) -> None:
    """Makes a detector's head compute its targets this way on a CPU, if ``is_supported``."""
    if is_supported(head):
        head.prior_generator = CachedAnchors(head.prior_generator)
        head.anchor_target_3d = NearbyTargets(head)


def is_supported(head: Any) -> bool:
    """Whether an anchor without overlap is always background to the head, and anchors lie on one axis-aligned grid."""
    from mmdet3d.models.dense_heads import Anchor3DHead
    from mmdet3d.models.task_modules import AlignedAnchor3DRangeGenerator, Max3DIoUAssigner
    from mmdet3d.structures.ops import BboxOverlapsNearest3D

    if type(head) is not Anchor3DHead or not isinstance(head.bbox_assigner, list) or head.sampling:
        return False
    generator = head.prior_generator
    if type(generator) is not AlignedAnchor3DRangeGenerator or generator.num_levels != 1 or generator.reshape_out:
        return False
    return head.assign_per_class and all(
        type(assigner) is Max3DIoUAssigner
        and type(assigner.iou_calculator) is BboxOverlapsNearest3D
        and assigner.iou_calculator.coordinate == "lidar"
        and isinstance(assigner.neg_iou_thr, float)
        and min(assigner.pos_iou_thr, assigner.neg_iou_thr, assigner.min_pos_iou) > 0
        for assigner in head.bbox_assigner
    )


class NearbyTargets:
    """Replaces the head's ``anchor_target_3d``; the anchors must be the same tensors at every step."""

    def __init__(self, head: Any) -> None:
        self._head, self._original = head, head.anchor_target_3d
        self._grid: Tensor | None = None

    def __call__(
        self, anchor_list: list[list[Tensor]], truths: Sequence[Any], metas: Sequence[Any], **options: Any
    ) -> Any:
        """Labels, boxes and directions, each followed by its weights, as lists of one level (B, N, ...); then the
        numbers of positive and negative anchors."""
        grid = anchor_list[0][0]
        ignored = options.get("batch_gt_instances_ignore")
        if grid.device.type != "cpu" or ignored is not None or not self._measure_grid(grid):
            return self._original(anchor_list, truths, metas, **options)
        rows, columns, class_count, rotations, code_size = grid.shape[1:]
        shape = (len(truths), rows * columns, class_count, rotations)
        labels = torch.full(shape, options["num_classes"])
        weights = grid.new_ones(shape)
        boxes, box_weights = grid.new_zeros(*shape, code_size), grid.new_zeros(*shape, code_size)
        directions, direction_weights = torch.zeros(shape, dtype=torch.long), grid.new_zeros(shape)
        targets = (labels, weights, boxes, box_weights, directions, direction_weights)
        positive = negative = 0
        for image, truth in enumerate(truths):
            image_positives = image_negatives = 0
            for label, assigner in enumerate(self._head.bbox_assigner):
                class_truth = truth[truth.labels_3d == label]
                is_near = self._overlaps_any(label, class_truth.bboxes_3d)
                cell, rotation = is_near.nonzero(as_tuple=True)
                image_negatives += is_near.numel() - len(cell)
                if not len(cell):
                    continue
                anchors = self._anchors[label][cell, rotation]
                computed = self._head.anchor_target_single_assigner(
                    assigner, anchors, class_truth, None, metas[image], options["num_classes"], False
                )
                for target, part in zip(targets, computed, strict=False):
                    target[image, cell, label, rotation] = part
                image_positives += len(computed[6])
                image_negatives += len(computed[7])
            positive += max(image_positives, 1)
            negative += max(image_negatives, 1)
        flat = [[target.flatten(1, 3)] for target in targets]
        return *flat, positive, negative

    def _measure_grid(self, grid: Tensor) -> bool:
        """Measures the extent of the anchors' columns and rows, once per grid; returns whether they are aligned."""
        from mmdet3d.structures import LiDARInstance3DBoxes

        if self._grid is not grid:
            _, rows, columns, class_count, rotations, code_size = grid.shape
            flat = LiDARInstance3DBoxes(grid.reshape(-1, code_size)).nearest_bev
            extent = flat.view(rows, columns, class_count, rotations, 4)
            self._column_extent, self._row_extent = extent[0, ..., 0::2], extent[:, 0, ..., 1::2]
            self._anchors = [part.reshape(-1, rotations, code_size) for part in grid[0].unbind(2)]
            self._grid = grid
            self._aligned = grid.shape[0] == 1 and bool(
                (extent[..., 0::2] == self._column_extent).all()
                and (extent[..., 1::2] == self._row_extent[:, None]).all()
            )
        return self._aligned

    def _overlaps_any(self, label: int, boxes: Any) -> Tensor:
        """(rows x columns, rotations) whether an anchor of the class overlaps one of the boxes in bird's-eye view."""
        column_extent, row_extent = self._column_extent[:, label], self._row_extent[:, label]
        overlaps = []
        nearest_boxes = boxes.nearest_bev
        for anchor_extent, box_extent in (
            (row_extent, nearest_boxes[:, 1::2]),
            (column_extent, nearest_boxes[:, 0::2]),
        ):
            low, high = (end[:, None, None] for end in box_extent.unbind(1))
            overlaps.append((anchor_extent[None, ..., 0] < high) & (anchor_extent[None, ..., 1] > low))
        rows, columns = (overlap.float().permute(2, 0, 1) for overlap in overlaps)  # (rotations, boxes, positions)
        is_near: Tensor = rows.transpose(1, 2) @ columns > 0
        return is_near.flatten(1).t()
