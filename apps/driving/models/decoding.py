"""From the maps of PointPillars and FCOS3D to boxes, as mmdet3d's heads decode them, without mmdet3d.

Importing mmdet3d takes longer than detecting; a program needs its weights alone. Formulas and orders are those of
``Anchor3DHead`` with ``DeltaXYZWLHRBBoxCoder``, and of ``FCOSMono3DHead``; tests compare the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import pi
from typing import TypeAlias

import torch
from torch import Tensor

from apps.driving.models.ops.boxes import kept_rotated, nms_rotated
from apps.driving.types import LidarInput
from shared.device import sent

Found: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Boxes (N, 7; gravity centre, sizes, yaw), scores (N,) and labels (N,)."""
_MAX_COMPARED = 512
"""So many of the candidates times classes, the best, are compared pair by pair on a GPU."""
_APART = 1e5
"""Metres; farther than any box from another."""
_ROTATIONS = (0.0, 1.57)
"""Headings of the anchors in mmdet3d's KITTI configuration."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Suppression:
    """Which candidates become boxes: the ``candidates`` best of a level, those above ``least_score``, of one class none
    that overlaps a better one from above by ``overlap``, and at most ``boxes`` of a frame."""

    candidates: int
    least_score: float
    overlap: float
    boxes: int


LIDAR = Suppression(candidates=100, least_score=0.1, overlap=0.01, boxes=50)
CAMERA = Suppression(candidates=1000, least_score=0.05, overlap=0.8, boxes=200)
"""The ``test_cfg`` of mmdet3d's PointPillars on KITTI and FCOS3D on nuScenes."""


@dataclass(frozen=True, slots=True)
class AnchorDecoder:
    """Decodes the heads of PointPillars. ``anchors_N7`` have the centre of their bottom face, by row, column, class."""

    anchors_N7: Tensor
    classes: int
    suppression: Suppression = LIDAR
    direction_offset: float = -pi / 2

    def __call__(self, scores: Tensor, boxes: Tensor, directions: Tensor) -> Found:
        """Boxes in a sweep from (1, A C, H, W) scores, (1, 7 A, H, W) boxes and (1, 2 A, H, W) directions."""
        cells = scores.shape[2] * scores.shape[3]
        logit_ACP = scores.reshape(-1, self.classes, cells)
        # Decoded are the best alone, and of the others no more is read than their best class.
        best = _best(logit_ACP.amax(dim=1).reshape(-1), self.suppression.candidates)
        anchor, place = best // cells, best % cells
        score_NC = logit_ACP[anchor, :, place].sigmoid()
        turned_N = directions.reshape(-1, 2, cells)[anchor, :, place].argmax(dim=1)
        delta_N7 = boxes.reshape(-1, 7, cells)[anchor, :, place]
        box_N7 = decode_deltas(self.anchors_N7.to(delta_N7.device)[place * len(logit_ACP) + anchor], delta_N7)
        kept, label = suppress(_columns(box_N7, 0, 1, 3, 4, 6), score_NC, self.suppression)
        box, score = box_N7[kept], score_NC[kept, label]
        heading = _limit(box[:, 6] - self.direction_offset, 0.0, pi)
        yaw = heading + self.direction_offset + pi * turned_N[kept]
        centre = torch.stack([box[:, 0], box[:, 1], box[:, 2] + box[:, 5] / 2], dim=1)
        return torch.cat([centre, box[:, 3:6], yaw[:, None]], dim=1), score, label


def anchors(input: LidarInput, rows: int, columns: int) -> Tensor:
    """(rows * columns * C * 2, 7) anchors of the classes of ``input`` at the centres of the head's cells."""
    x0, y0, _, x1, y1, _ = input.range_m
    x, y = (
        torch.linspace(low, high, number + 1)[:number] + (high - low) / number / 2
        for low, high, number in ((x0, x1, columns), (y0, y1, rows))
    )
    made = torch.empty(rows, columns, len(input.classes), len(_ROTATIONS), 7)
    made[..., 0], made[..., 1] = x[None, :, None, None], y[:, None, None, None]
    for number, kind in enumerate(input.classes):
        made[:, :, number, :, 2] = kind.bottom_m
        made[:, :, number, :, 3:6] = torch.tensor(kind.size_m)
    made[..., 6] = torch.tensor(_ROTATIONS)
    return made.reshape(-1, 7)


def decode_deltas(anchors_N7: Tensor, deltas_N7: Tensor) -> Tensor:
    """(N, 7) boxes, centre of the bottom face, from what the head says of its anchors (SECOND, Yan et al., 2018)."""
    x, y, z, width, length, height, yaw = anchors_N7.unbind(1)
    diagonal = torch.sqrt(length**2 + width**2)
    tall = torch.exp(deltas_N7[:, 5]) * height
    middle = deltas_N7[:, 2] * height + z + height / 2
    return torch.stack(
        [
            deltas_N7[:, 0] * diagonal + x,
            deltas_N7[:, 1] * diagonal + y,
            middle - tall / 2,
            torch.exp(deltas_N7[:, 3]) * width,
            torch.exp(deltas_N7[:, 4]) * length,
            tall,
            deltas_N7[:, 6] + yaw,
        ],
        dim=1,
    )


@dataclass(frozen=True, slots=True)
class CameraDecoder:
    """Decodes the heads of FCOS3D with boxes of seven numbers; ``strides`` of the pyramid's levels in pixels."""

    strides: Sequence[int] = (8, 16, 32, 64, 128)
    suppression: Suppression = CAMERA
    direction_offset: float = 0.7854

    def __call__(
        self, maps: Mapping[str, Tensor], number: int, intrinsics_33: Tensor, scale: tuple[float, float]
    ) -> Found:
        """Boxes (N, 7; centre, length, height, width, yaw about y) in the camera's frame, of image ``number``.

        ``maps`` are the outputs of ``fcos3d.ImageToHeads``; ``scale`` the factors of width and height by which the
        image was resized after it was taken with ``intrinsics_33``, which are on the host. On a GPU the host waits
        once, in ``suppress``.
        """
        levels = [self._level(maps, stride, number, scale) for stride in self.strides]
        score_NC, box_N7, turned_N = (torch.cat(parts) for parts in zip(*levels, strict=True))
        from_pixels = sent(torch.linalg.inv(intrinsics_33).T, box_N7.device)
        focal, middle = float(intrinsics_33[0, 0]), float(intrinsics_33[0, 2])
        pixels = box_N7[:, :2]
        rays = torch.cat([pixels * box_N7[:, 2:3], box_N7[:, 2:3]], dim=1)
        centre = rays @ from_pixels
        heading = _limit(box_N7[:, 6] - self.direction_offset, 0.0, pi)
        yaw = heading + self.direction_offset + pi * turned_N
        yaw = torch.atan2(pixels[:, 0] - middle, torch.full_like(yaw, focal)) + yaw
        boxes = torch.cat([centre, box_N7[:, 3:6], yaw[:, None]], dim=1)
        above = torch.cat([_columns(boxes, 0, 2, 3, 5), -boxes[:, 6:]], dim=1)
        kept, label = suppress(above, score_NC, self.suppression)
        return boxes[kept], score_NC[kept, label], label

    def _level(
        self, maps: Mapping[str, Tensor], stride: int, number: int, scale: tuple[float, float]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (N, C), boxes (N, 7: pixel of the centre, depth, sizes, local yaw) and directions (N,) of a level."""
        names = ("scores", "boxes", "directions", "centerness")
        score, box, direction, centerness = (maps[f"{name}_{stride}"][number].permute(1, 2, 0) for name in names)
        rows, columns, _ = score.shape
        y, x = torch.meshgrid(
            torch.arange(rows, device=box.device), torch.arange(columns, device=box.device), indexing="ij"
        )
        points_N2 = (torch.stack([x.reshape(-1), y.reshape(-1)], dim=1) * stride + stride // 2).to(box.dtype)
        score_NC = score.reshape(rows * columns, -1).sigmoid() * centerness.reshape(-1, 1).sigmoid()
        best = _best(score_NC.amax(dim=1), self.suppression.candidates)
        box_N7 = box.reshape(rows * columns, -1)[best, :7].clone()
        resized = sent(torch.tensor(scale, dtype=box.dtype), box.device)
        box_N7[:, :2] = (points_N2[best] - box_N7[:, :2]) / resized
        return score_NC[best], box_N7, direction.reshape(-1, 2)[best].argmax(dim=1)


def suppress(above_N5: Tensor, score_NC: Tensor, settings: Suppression) -> tuple[Tensor, Tensor]:
    """Indices (M,) of the candidates that become boxes and their classes (M,); ``above_N5`` are seen from above."""
    if above_N5.device.type != "cpu":
        index, label_of, stays, certain = settled(above_N5, score_NC, settings)
        # Here alone the host waits for the device.
        *kept_of, is_certain = torch.cat([stays, certain[None]]).tolist()
        if is_certain:
            kept = sent(torch.tensor(kept_of).nonzero().squeeze(1)[: settings.boxes], index.device)
            return index[kept], label_of[kept]
    index, label_of = (score_NC > settings.least_score).nonzero().unbind(1)
    # All classes at once, each moved away from the others: one class's boxes suppress no other's.
    plane, score = above_N5[index].double(), score_NC[index, label_of]
    plane[:, 0] += _APART * label_of
    # One more than are wanted tells whether the best are to be picked out.
    kept = nms_rotated(plane, score, index, plane, label_of, settings.overlap, False, settings.boxes + 1)
    kept = kept[label_of[kept].argsort(stable=True)]
    index, label_of = index[kept], label_of[kept]
    if len(index) > settings.boxes:
        best = score_NC[index, label_of].sort(descending=True).indices[: settings.boxes]
        index, label_of = index[best], label_of[best]
    return index, label_of


def settled(above_N5: Tensor, score_NC: Tensor, settings: Suppression) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best candidates and their classes (M,) each, best first, whether they become boxes (M,), and () whether that
    is certain and all: that of the other candidates none can become a box.

    All shapes are fixed, and no value is read on the host: a GPU does not wait before the boxes are picked out.
    """
    all_scores = score_NC.reshape(-1)
    compared = min(len(all_scores), _MAX_COMPARED)
    score, place = all_scores.topk(min(len(all_scores), compared + 1))
    # None of the rest counts where the best of it does not, or where there are boxes enough before it.
    rest, score, place = score[compared:], score[:compared], place[:compared]
    index, label_of = place // score_NC.shape[1], place % score_NC.shape[1]
    plane = above_N5[index].double()
    plane = torch.cat([plane[:, :1] + _APART * label_of[:, None], plane[:, 1:]], dim=1)
    stays, certain = kept_rotated(plane, score > settings.least_score, settings.overlap)
    all_seen = (rest <= settings.least_score).all() | (stays.sum() >= settings.boxes)
    return index, label_of, stays, certain & all_seen


def _best(score_N: Tensor, most: int) -> Tensor:
    """Indices of the ``most`` best, best first; all in their own order where there are no more."""
    return score_N.topk(most).indices if len(score_N) > most else torch.arange(len(score_N), device=score_N.device)


def _columns(table_NC: Tensor, *columns: int) -> Tensor:
    """Those columns; an index of several would be copied to a GPU, and the host would wait."""
    return torch.stack([table_NC[:, column] for column in columns], dim=1)


def _limit(angle: Tensor, offset: float, period: float) -> Tensor:
    """Angles in [-offset * period, (1 - offset) * period)."""
    return angle - torch.floor(angle / period + offset) * period


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Of an image's colours before FCOS3D: mean and deviation of red, green and blue, 0 to 255; torchvision's.

    ``swapped`` where a network takes blue, green, red: mean and deviation are in that order then.
    """

    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    deviation: tuple[float, float, float] = (58.395, 57.12, 57.375)
    stride: int = 32
    swapped: bool = False

    def __call__(self, images_3HW: Sequence[Tensor]) -> Tensor:
        """(B, 3, H', W') from RGB images of one padded size, zeros on the right and below up to a whole stride."""
        largest = [max(image.shape[axis] for image in images_3HW) for axis in (1, 2)]
        height, width = (-(-size // self.stride) * self.stride for size in largest)
        first = images_3HW[0]
        mean, deviation = (sent(torch.tensor(v)[:, None, None], first.device) for v in (self.mean, self.deviation))
        batch = torch.zeros((len(images_3HW), 3, height, width), device=first.device)
        for row, image in zip(batch, images_3HW, strict=True):
            colours = image.flip(0) if self.swapped else image
            row[:, : image.shape[1], : image.shape[2]] = (colours.float() - mean) / deviation
        return batch
