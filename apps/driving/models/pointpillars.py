"""PointPillars (Lang et al., 2019): mmdet3d's ``VoxelNet`` from its KITTI configuration, its classes unmodified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from apps.driving.models.library import build, shipped_config

CLASSES = ("pedestrian", "cyclist", "car")
"""In the order of the anchors in mmdet3d's configuration."""

_CONFIG = "pointpillars/pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class.py"


@dataclass(frozen=True, kw_only=True, slots=True)
class PointPillars:
    """The defaults are mmdet3d's KITTI 3-class configuration as it is shipped.

    ``range_m`` is x, y, z from and to, in the LiDAR frame; ``pillar_m`` the side of a pillar.
    """

    name: Literal["pointpillars"] = "pointpillars"
    range_m: tuple[float, float, float, float, float, float] = (0.0, -39.68, -3.0, 69.12, 39.68, 1.0)
    pillar_m: float = 0.16
    points_per_pillar: int = 32
    pillars: tuple[int, int] = (16000, 40000)
    features: int = 64
    layers: tuple[int, int, int] = (3, 5, 5)
    widths: tuple[int, int, int] = (64, 128, 256)
    neck: int = 128

    @property
    def grid(self) -> tuple[int, int]:
        """Rows (y) and columns (x) of the pseudo-image."""
        x0, y0, _, x1, y1, _ = self.range_m
        return round((y1 - y0) / self.pillar_m), round((x1 - x0) / self.pillar_m)

    def settings(self) -> dict[str, Any]:
        """mmdet3d's configuration with these sizes."""
        model = shipped_config(_CONFIG)
        x0, y0, z0, x1, y1, z1 = self.range_m
        extent, pillar = [x0, y0, z0, x1, y1, z1], [self.pillar_m, self.pillar_m, z1 - z0]
        model["data_preprocessor"]["voxel_layer"].update(
            max_num_points=self.points_per_pillar,
            point_cloud_range=extent,
            voxel_size=pillar,
            max_voxels=self.pillars,
        )
        model["voxel_encoder"].update(feat_channels=[self.features], voxel_size=pillar, point_cloud_range=extent)
        model["middle_encoder"].update(in_channels=self.features, output_shape=list(self.grid))
        model["backbone"].update(
            in_channels=self.features, layer_nums=list(self.layers), out_channels=list(self.widths)
        )
        model["neck"].update(in_channels=list(self.widths), out_channels=[self.neck] * 3)
        model["bbox_head"].update(in_channels=3 * self.neck, feat_channels=3 * self.neck)
        anchors = model["bbox_head"]["anchor_generator"]
        anchors["ranges"] = [[x0, y0, z, x1, y1, z] for z in (row[2] for row in anchors["ranges"])]
        return model

    def build(self, input: Any = None) -> nn.Module:
        return build(self.settings())


class PillarsToHeads(nn.Module):
    """The dense part: pseudo-image (B, features, rows, columns) to scores, boxes and directions of the anchors.

    Outputs (B, 18, H, W), (B, 42, H, W) and (B, 12, H, W) with six anchors a cell (three classes at two headings).
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.neck, self.bbox_head = detector.backbone, detector.neck, detector.bbox_head

    def forward(self, pseudo_image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores, boxes, directions = self.bbox_head(self.neck(self.backbone(pseudo_image)))
        return scores[0], boxes[0], directions[0]


def example_input(model: PointPillars) -> Tensor:
    """A pseudo-image of two frames, for export."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, model.features, *model.grid, generator=generator)
