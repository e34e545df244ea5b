"""PointPillars (Lang et al., 2019): mmdet3d's unmodified ``VoxelNet``, built from its KITTI configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from apps.driving.models.library import build, dense_parts, shipped_config
from apps.driving.types import LidarInput, ObjectClass
from shared.errors import InvalidInputError
from shared.recipe import Axis

_CONFIG_PATH = "pointpillars/pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class.py"
_GRID_MULTIPLE = 8
"""The stride of the backbone's last stage: the grid's rows and columns must be multiples of it."""
_MAX_SHORT_LENGTH_M = 2.5
"""Classes with a longer mean length match anchors as the configuration's cars do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PointPillars:
    """The defaults are mmdet3d's shipped KITTI 3-class configuration.

    ``pillar_m`` is the side of a pillar in metres. The input sets the range and the classes with their anchor sizes.
    With ``dynamic`` pillars every point is encoded, in training and in prediction, as in mmdet3d's
    ``dynamic_voxelization`` (Zhou et al. 2019, "MVF", section 3.1). Otherwise the network itself takes the first
    ``points_per_pillar`` points of the first ``pillars`` pillars (in training, in prediction), and a program takes
    every point.

    ``upsampling`` are the factors of the three stages to a common grid: with (1, 2, 4) a cell of the head is two
    pillars wide, with (2, 4, 8) one. ``box_weight`` and ``direction_weight`` are weights of the losses. The best
    ``candidates`` anchors with a score above ``least_score`` enter the suppression, and at most ``most_boxes`` boxes
    remain.

    ``short_overlaps`` are the IoU thresholds of classes of short objects: an anchor is positive from the first and
    negative below the second; an object's best anchor is positive from the third. In a coarse grid a pedestrian between
    two cells overlaps no anchor by 0.35, mmdet3d's minimum, and would be learnt as background.
    """

    sensor: ClassVar[Literal["lidar"]] = "lidar"
    name: Literal["pointpillars"] = "pointpillars"
    pillar_m: float = 0.16
    points_per_pillar: int = 32
    pillars: tuple[int, int] = (16000, 40000)
    features: int = 64
    layers: tuple[int, int, int] = (3, 5, 5)
    widths: tuple[int, int, int] = (64, 128, 256)
    neck: int = 128
    dynamic: bool = False
    upsampling: tuple[int, int, int] = (1, 2, 4)
    box_weight: float = 2.0
    direction_weight: float = 0.2
    short_overlaps: tuple[float, float, float] = (0.5, 0.35, 0.35)
    candidates: int = 100
    least_score: float = 0.1
    most_boxes: int = 50

    def grid(self, input: LidarInput) -> tuple[int, int]:
        """Rows (y) and columns (x) of the pseudo-image; raises InvalidInputError unless the range is a multiple of
        eight pillars."""
        x0, y0, _, x1, y1, _ = input.range_m
        rows, columns = round((y1 - y0) / self.pillar_m), round((x1 - x0) / self.pillar_m)
        for axis, count, extent in (("y", rows, y1 - y0), ("x", columns, x1 - x0)):
            if count < 1 or count % _GRID_MULTIPLE or abs(count * self.pillar_m - extent) > 1e-3 * self.pillar_m:
                step = self.pillar_m * _GRID_MULTIPLE
                raise InvalidInputError(
                    f"input.range_m covers {extent:g} m in {axis}; with pillars of {self.pillar_m:g} m it must be a "
                    f"multiple of {step:g} m, such as {max(1, round(extent / step)) * step:g}"
                )
        return rows, columns

    def settings(self, input: LidarInput) -> dict[str, Any]:
        """mmdet3d's configuration with these settings, for the range and classes of ``input``."""
        model = shipped_config(_CONFIG_PATH)
        x0, y0, z0, x1, y1, z1 = input.range_m
        extent, pillar = [x0, y0, z0, x1, y1, z1], [self.pillar_m, self.pillar_m, z1 - z0]
        model["data_preprocessor"]["voxel_layer"].update(
            max_num_points=self.points_per_pillar,
            point_cloud_range=extent,
            voxel_size=pillar,
            max_voxels=self.pillars,
        )
        model["voxel_encoder"].update(feat_channels=[self.features], voxel_size=pillar, point_cloud_range=extent)
        if self.dynamic:
            model["type"], model["voxel_encoder"]["type"] = "DynamicVoxelNet", "DynamicPillarFeatureNet"
            model["data_preprocessor"]["voxel_type"] = "dynamic"
            model["data_preprocessor"]["voxel_layer"].update(max_num_points=-1, max_voxels=(-1, -1))
        model["middle_encoder"].update(in_channels=self.features, output_shape=list(self.grid(input)))
        model["backbone"].update(
            in_channels=self.features, layer_nums=list(self.layers), out_channels=list(self.widths)
        )
        model["neck"].update(
            in_channels=list(self.widths), out_channels=[self.neck] * 3, upsample_strides=list(self.upsampling)
        )
        model["bbox_head"].update(
            num_classes=len(input.classes), in_channels=3 * self.neck, feat_channels=3 * self.neck
        )
        model["bbox_head"]["anchor_generator"].update(
            ranges=[[x0, y0, kind.bottom_m, x1, y1, kind.bottom_m] for kind in input.classes],
            sizes=[list(kind.size_m) for kind in input.classes],
        )
        model["bbox_head"]["loss_bbox"]["loss_weight"] = self.box_weight
        model["bbox_head"]["loss_dir"]["loss_weight"] = self.direction_weight
        model["test_cfg"].update(nms_pre=self.candidates, score_thr=self.least_score, max_num=self.most_boxes)
        short, _, large = model["train_cfg"]["assigner"]
        positive, negative, min_positive = self.short_overlaps
        short |= {"pos_iou_thr": positive, "neg_iou_thr": negative, "min_pos_iou": min_positive}
        model["train_cfg"]["assigner"] = [dict(large if _is_long(kind) else short) for kind in input.classes]
        return model

    def build(self, input: LidarInput) -> nn.Module:
        return build(self.settings(input))

    def compiled_parts(self, model: nn.Module) -> tuple[nn.Module, ...]:
        """Backbone, neck and head."""
        return dense_parts(model)

    def class_axes(self, classes: Sequence[str]) -> dict[str, Axis]:
        """The parameters of the head's outputs: each class has anchors at two yaw angles, and each anchor a score for
        every class, seven box values and two direction values."""
        anchors = list(product(classes, range(2)))
        outputs = {"conv_cls": classes, "conv_reg": range(7), "conv_dir_cls": range(2)}
        return {
            f"bbox_head.{layer}.{part}": Axis(0, list(product(anchors, values)))
            for layer, values in outputs.items()
            for part in ("weight", "bias")
        }


def _is_long(kind: ObjectClass) -> bool:
    return kind.size_m[0] > _MAX_SHORT_LENGTH_M


class PillarsToHeads(nn.Module):
    """The dense network: from a pseudo-image (B, features, rows, columns) to the anchors' scores, boxes and directions.

    The outputs are (B, A C, H, W), (B, 7 A, H, W) and (B, 2 A, H, W), with A = 2 C anchors per cell: C classes at two
    yaw angles.
    """

    backbone: nn.Module
    neck: nn.Module
    bbox_head: nn.Module

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.neck, self.bbox_head = detector.backbone, detector.neck, detector.bbox_head

    def forward(self, pseudo_image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores, boxes, directions = self.bbox_head(self.neck(self.backbone(pseudo_image)))
        return scores[0], boxes[0], directions[0]


def example_input(model: PointPillars, input: LidarInput) -> Tensor:
    """A random pseudo-image of two frames, for export."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, model.features, *model.grid(input), generator=generator)
