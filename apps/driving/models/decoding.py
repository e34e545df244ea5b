"""Decodes the maps of PointPillars and FCOS3D to boxes, as mmdet3d's heads do, without importing mmdet3d.

Importing mmdet3d takes longer than a detection, and a program needs only the weights. Formulas and orders are those of
``Anchor3DHead`` with ``DeltaXYZWLHRBBoxCoder`` and of ``FCOSMono3DHead``; tests compare the results with theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import pi
from typing import TypeAlias

import torch
from torch import Tensor

from apps.driving.models.ops.boxes import nms_rotated, nms_rotated_mask
from apps.driving.types import LidarInput
from shared.device import to_device

BoxTensors: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Boxes (N, 7; gravity centre, sizes, yaw), scores (N,) and labels (N,)."""
_MAX_GPU_CANDIDATES = 512
"""Maximum number of pairs of a candidate and a class that are compared with each other on a GPU, best first."""
_CLASS_OFFSET_M = 1e5
"""Offset between the boxes of two classes: larger than any distance between boxes, so that they never overlap."""
_ANCHOR_YAWS = (0.0, 1.57)
"""The anchors' yaw angles in mmdet3d's KITTI configuration, in radians."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Suppression:
    """Which candidates become boxes: the ``candidates`` best of each level, those above ``min_score``, those whose BEV
    IoU with a better box of the class is below ``iou_threshold``, and at most ``boxes`` per frame."""

    candidates: int
    min_score: float
    iou_threshold: float
    boxes: int


LIDAR = Suppression(candidates=100, min_score=0.1, iou_threshold=0.01, boxes=50)
CAMERA = Suppression(candidates=1000, min_score=0.05, iou_threshold=0.8, boxes=200)
"""The ``test_cfg`` of mmdet3d's PointPillars on KITTI and FCOS3D on nuScenes."""


@dataclass(frozen=True, slots=True)
class AnchorDecoder:
    """Decodes the head of PointPillars. ``anchors_N7`` (centre of the bottom face, sizes, yaw) are ordered by row,
    column, class and yaw."""

    anchors_N7: Tensor
    classes: int
    suppression: Suppression = LIDAR
    direction_offset: float = -pi / 2

    def __call__(self, scores: Tensor, boxes: Tensor, directions: Tensor) -> BoxTensors:
        """Boxes of a sweep from score (1, A C, H, W), box (1, 7 A, H, W) and direction (1, 2 A, H, W) maps."""
        cells = scores.shape[2] * scores.shape[3]
        logit_ACP = scores.reshape(-1, self.classes, cells)
        # Only the best candidates are decoded; of the others only the score of their best class is read.
        best = _top_indices(logit_ACP.amax(dim=1).reshape(-1), self.suppression.candidates)
        anchor, cell = best // cells, best % cells
        score_NC = logit_ACP[anchor, :, cell].sigmoid()
        direction_N = directions.reshape(-1, 2, cells)[anchor, :, cell].argmax(dim=1)
        delta_N7 = boxes.reshape(-1, 7, cells)[anchor, :, cell]
        box_N7 = decode_deltas(self.anchors_N7.to(delta_N7.device)[cell * len(logit_ACP) + anchor], delta_N7)
        kept, label = suppress(_columns(box_N7, 0, 1, 3, 4, 6), score_NC, self.suppression)
        box, score = box_N7[kept], score_NC[kept, label]
        heading = _limit_period(box[:, 6] - self.direction_offset, 0.0, pi)
        yaw = heading + self.direction_offset + pi * direction_N[kept]
        centre = torch.stack([box[:, 0], box[:, 1], box[:, 2] + box[:, 5] / 2], dim=1)
        return torch.cat([centre, box[:, 3:6], yaw[:, None]], dim=1), score, label


def anchors(input: LidarInput, rows: int, columns: int) -> Tensor:
    """(rows * columns * C * 2, 7) anchors of the C classes of ``input`` at the centres of the head's cells."""
    x0, y0, _, x1, y1, _ = input.range_m
    x, y = (
        torch.linspace(low, high, cells + 1)[:cells] + (high - low) / cells / 2
        for low, high, cells in ((x0, x1, columns), (y0, y1, rows))
    )
    anchor_grid = torch.empty(rows, columns, len(input.classes), len(_ANCHOR_YAWS), 7)
    anchor_grid[..., 0], anchor_grid[..., 1] = x[None, :, None, None], y[:, None, None, None]
    for class_index, kind in enumerate(input.classes):
        anchor_grid[:, :, class_index, :, 2] = kind.bottom_m
        anchor_grid[:, :, class_index, :, 3:6] = torch.tensor(kind.size_m)
    anchor_grid[..., 6] = torch.tensor(_ANCHOR_YAWS)
    return anchor_grid.reshape(-1, 7)


def decode_deltas(anchors_N7: Tensor, deltas_N7: Tensor) -> Tensor:
    """(N, 7) boxes, centre of the bottom face, from anchors and predicted deltas (SECOND, Yan et al., 2018)."""
    x, y, z, width, length, height, yaw = anchors_N7.unbind(1)
    diagonal = torch.sqrt(length**2 + width**2)
    new_height = torch.exp(deltas_N7[:, 5]) * height
    centre_z = deltas_N7[:, 2] * height + z + height / 2
    return torch.stack(
        [
            deltas_N7[:, 0] * diagonal + x,
            deltas_N7[:, 1] * diagonal + y,
            centre_z - new_height / 2,
            torch.exp(deltas_N7[:, 3]) * width,
            torch.exp(deltas_N7[:, 4]) * length,
            new_height,
            deltas_N7[:, 6] + yaw,
        ],
        dim=1,
    )


@dataclass(frozen=True, slots=True)
class CameraDecoder:
    """Decodes the head of FCOS3D for boxes of seven numbers; ``strides`` are those of the pyramid levels in pixels."""

    strides: Sequence[int] = (8, 16, 32, 64, 128)
    suppression: Suppression = CAMERA
    direction_offset: float = 0.7854

    def __call__(
        self, maps: Mapping[str, Tensor], image_index: int, intrinsics_33: Tensor, scale: tuple[float, float]
    ) -> BoxTensors:
        """Boxes (N, 7; centre, length, height, width, yaw about y) of image ``image_index`` in the camera frame.

        ``maps`` are the outputs of ``fcos3d.ImageToHeads``; ``intrinsics_33``, on the host, are those of the image
        before it was resized by the factors ``scale`` (width, height). On a GPU the host waits once, in ``suppress``.
        """
        levels = [self._level(maps, stride, image_index, scale) for stride in self.strides]
        score_NC, box_N7, direction_N = (torch.cat(parts) for parts in zip(*levels, strict=True))
        from_pixels = to_device(torch.linalg.inv(intrinsics_33).T, box_N7.device)
        focal, principal_x = float(intrinsics_33[0, 0]), float(intrinsics_33[0, 2])
        pixels = box_N7[:, :2]
        rays = torch.cat([pixels * box_N7[:, 2:3], box_N7[:, 2:3]], dim=1)
        centre = rays @ from_pixels
        heading = _limit_period(box_N7[:, 6] - self.direction_offset, 0.0, pi)
        yaw = heading + self.direction_offset + pi * direction_N
        yaw = torch.atan2(pixels[:, 0] - principal_x, torch.full_like(yaw, focal)) + yaw
        boxes = torch.cat([centre, box_N7[:, 3:6], yaw[:, None]], dim=1)
        bev_N5 = torch.cat([_columns(boxes, 0, 2, 3, 5), -boxes[:, 6:]], dim=1)
        kept, label = suppress(bev_N5, score_NC, self.suppression)
        return boxes[kept], score_NC[kept, label], label

    def _level(
        self, maps: Mapping[str, Tensor], stride: int, image_index: int, scale: tuple[float, float]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (N, C), boxes (N, 7: the centre's pixel, depth, sizes, local yaw) and directions (N,) of a level."""
        names = ("scores", "boxes", "directions", "centerness")
        score, box, direction, centerness = (maps[f"{name}_{stride}"][image_index].permute(1, 2, 0) for name in names)
        rows, columns, _ = score.shape
        y, x = torch.meshgrid(
            torch.arange(rows, device=box.device), torch.arange(columns, device=box.device), indexing="ij"
        )
        points_N2 = (torch.stack([x.reshape(-1), y.reshape(-1)], dim=1) * stride + stride // 2).to(box.dtype)
        score_NC = score.reshape(rows * columns, -1).sigmoid() * centerness.reshape(-1, 1).sigmoid()
        best = _top_indices(score_NC.amax(dim=1), self.suppression.candidates)
        box_N7 = box.reshape(rows * columns, -1)[best, :7].clone()
        factors = to_device(torch.tensor(scale, dtype=box.dtype), box.device)
        box_N7[:, :2] = (points_N2[best] - box_N7[:, :2]) / factors
        return score_NC[best], box_N7, direction.reshape(-1, 2)[best].argmax(dim=1)


def suppress(bev_N5: Tensor, score_NC: Tensor, settings: Suppression) -> tuple[Tensor, Tensor]:
    """Indices (M,) of the candidates that become boxes, and their classes (M,); ``bev_N5`` are the boxes in the
    bird's-eye view: x, y, length, width, yaw."""
    if bev_N5.device.type != "cpu":
        index, label_of, is_kept, certain = suppress_on_device(bev_N5, score_NC, settings)
        # The only place where the host waits for the device.
        *kept_flags, is_certain = torch.cat([is_kept, certain[None]]).tolist()
        if is_certain:
            kept = to_device(torch.tensor(kept_flags).nonzero().squeeze(1)[: settings.boxes], index.device)
            return index[kept], label_of[kept]
    index, label_of = (score_NC > settings.min_score).nonzero().unbind(1)
    # All classes at once, each shifted away from the others, so that no box suppresses one of another class.
    plane, score = bev_N5[index].double(), score_NC[index, label_of]
    plane[:, 0] += _CLASS_OFFSET_M * label_of
    # One more than needed shows whether the best have to be selected.
    kept = nms_rotated(plane, score, index, plane, label_of, settings.iou_threshold, False, settings.boxes + 1)
    kept = kept[label_of[kept].argsort(stable=True)]
    index, label_of = index[kept], label_of[kept]
    if len(index) > settings.boxes:
        best = score_NC[index, label_of].sort(descending=True).indices[: settings.boxes]
        index, label_of = index[best], label_of[best]
    return index, label_of


def suppress_on_device(
    bev_N5: Tensor, score_NC: Tensor, settings: Suppression
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Suppression without waiting for the device: the best candidates (M,) and their classes (M,), best first; whether
    each becomes a box (M,); and () whether this is certain and no other candidate can become a box.

    All shapes are fixed and no value is read on the host, so that a GPU never waits.
    """
    all_scores = score_NC.reshape(-1)
    compared_count = min(len(all_scores), _MAX_GPU_CANDIDATES)
    score, flat_index = all_scores.topk(min(len(all_scores), compared_count + 1))
    # The remaining candidates can be ignored if the best of them scores too low, or if there are enough boxes already.
    remaining_score, score, flat_index = score[compared_count:], score[:compared_count], flat_index[:compared_count]
    index, label_of = flat_index // score_NC.shape[1], flat_index % score_NC.shape[1]
    plane = bev_N5[index].double()
    plane = torch.cat([plane[:, :1] + _CLASS_OFFSET_M * label_of[:, None], plane[:, 1:]], dim=1)
    is_kept, certain = nms_rotated_mask(plane, score > settings.min_score, settings.iou_threshold)
    is_complete = (remaining_score <= settings.min_score).all() | (is_kept.sum() >= settings.boxes)
    return index, label_of, is_kept, certain & is_complete


def _top_indices(score_N: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` best scores, best first; all indices in order if there are no more than ``count``."""
    return score_N.topk(count).indices if len(score_N) > count else torch.arange(len(score_N), device=score_N.device)


def _columns(table_NC: Tensor, *columns: int) -> Tensor:
    """The given columns. Indexing with a list would copy it to the GPU, and the host would wait."""
    return torch.stack([table_NC[:, column] for column in columns], dim=1)


def _limit_period(angle: Tensor, offset: float, period: float) -> Tensor:
    """Angles wrapped into [-offset * period, (1 - offset) * period)."""
    return angle - torch.floor(angle / period + offset) * period


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Normalises and pads images for FCOS3D; the default ``mean`` and ``std`` of red, green and blue, 0 to 255, are
    torchvision's.

    With ``is_bgr`` the network takes blue, green, red, and ``mean`` and ``std`` are in that order. Height and width are
    padded to multiples of ``stride``.
    """

    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    stride: int = 32
    is_bgr: bool = False

    def __call__(self, images_3HW: Sequence[Tensor]) -> Tensor:
        """(B, 3, H', W') from RGB images with the same padded size, padded with zeros on the right and bottom."""
        largest = [max(image.shape[axis] for image in images_3HW) for axis in (1, 2)]
        height, width = (-(-size // self.stride) * self.stride for size in largest)
        first = images_3HW[0]
        mean, std = (to_device(torch.tensor(v)[:, None, None], first.device) for v in (self.mean, self.std))
        batch = torch.zeros((len(images_3HW), 3, height, width), device=first.device)
        for row, image in zip(batch, images_3HW, strict=True):
            colours = image.flip(0) if self.is_bgr else image
            row[:, : image.shape[1], : image.shape[2]] = (colours.float() - mean) / std
        return batch
