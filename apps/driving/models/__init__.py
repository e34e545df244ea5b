"""Networks over mmdetection3d, checkpoint import, fast paths."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared.recipe import ModelConfig

MODELS = ("pointpillars", "fcos3d")
"""The names of the artifacts that the application ships and predicts with, the one that serves by default first."""
SECOND_STAGE = "lidar_rcnn"
"""That of the artifact which corrects the boxes of a PointPillars."""
IMPORTED = ("mmdet3d_lidar", "mmdet3d_camera")
"""Those of artifacts that `trivium import` makes of mmdet3d's checkpoints."""

AXES = ("x-forward-y-left", "x-right-y-forward", "x-backward-y-right", "x-left-y-backward")
"""Axes of a LiDAR frame with z up, each turned a quarter clockwise (from above) from the one before; ours first."""


def model_configs() -> dict[str, type[ModelConfig]]:
    """Settings of each network by its artifact's name. ``sensor`` says what it sees: "lidar" or "camera"."""
    from apps.driving.models.configurations import MMDet3DModel
    from apps.driving.models.fcos3d import FCOS3D
    from apps.driving.models.pointpillars import PointPillars

    return {
        "pointpillars": PointPillars,
        "fcos3d": FCOS3D,
        "mmdet3d_lidar": MMDet3DModel,
        "mmdet3d_camera": MMDet3DModel,
    }
