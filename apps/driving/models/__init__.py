"""Networks over mmdetection3d, checkpoint import, fast paths."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared.recipe import ModelConfig

MODELS = ("pointpillars", "fcos3d")
"""The names of the shipped detectors' artifacts, the default first."""
SECOND_STAGE = "lidar_rcnn"
"""The name of the artifact that refines the boxes of a PointPillars."""
IMPORTED = ("mmdet3d_lidar", "mmdet3d_camera")
"""The names of the artifacts that ``trivium import`` makes from mmdet3d's checkpoints."""

AXES = ("x-forward-y-left", "x-right-y-forward", "x-backward-y-right", "x-left-y-backward")
"""Axes of a LiDAR frame with z up, ours first; each is the previous rotated clockwise by 90 degrees, from above."""


def model_configs() -> dict[str, type[ModelConfig]]:
    """The settings class of each network by its artifact's name; ``sensor`` is its sensor, "lidar" or "camera"."""
    from apps.driving.models.configurations import MMDet3DModel
    from apps.driving.models.fcos3d import FCOS3D
    from apps.driving.models.pointpillars import PointPillars

    return {
        "pointpillars": PointPillars,
        "fcos3d": FCOS3D,
        "mmdet3d_lidar": MMDet3DModel,
        "mmdet3d_camera": MMDet3DModel,
    }
