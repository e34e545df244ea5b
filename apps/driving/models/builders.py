"""The networks that can be built, trained, imported and served, by the name that an artifact of them has."""

from __future__ import annotations

from shared.recipe import ModelConfig


def model_configs() -> dict[str, type[ModelConfig]]:
    """Settings of each network. ``sensor`` says what it sees: "lidar" or "camera"; ``name`` is its key."""
    from apps.driving.models.configurations import MMDet3DModel
    from apps.driving.models.fcos3d import FCOS3D
    from apps.driving.models.pointpillars import PointPillars

    return {
        "pointpillars": PointPillars,
        "fcos3d": FCOS3D,
        "mmdet3d_lidar": MMDet3DModel,
        "mmdet3d_camera": MMDet3DModel,
    }
