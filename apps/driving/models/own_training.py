"""Converts an imported network to a recipe's network, to train it further, or says why it cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from apps.driving.models.configurations import MMDet3DModel
from apps.driving.models.decoding import Normalisation
from apps.driving.models.fcos3d import FCOS3D, STRIDES
from apps.driving.models.own_settings import LIDAR_DETECTORS, checked_settings, part_settings
from apps.driving.models.pointpillars import PointPillars
from shared.errors import InvalidInputError
from shared.recipe_file import differences

_MAX_DIFFERENCES_SHOWN = 4
_CODE_SIZE = 7
_POINTPILLARS = ("VoxelNet", "DynamicVoxelNet")
"""The types of mmdet3d's detectors for KITTI, whose parts ``PointPillars`` has."""


def as_pointpillars(model: MMDet3DModel, base: PointPillars) -> PointPillars:
    """``base``, with its settings of losses and matching, in the sizes of ``model``, the user's own configuration.

    Raises InvalidInputError with the differing settings if ``PointPillars`` cannot build the network.
    """
    assert model.own is not None
    own = model.own
    if own.model["type"] not in _POINTPILLARS:
        raise _refusal(model, [f"model.type is {own.model['type']}, not {' or '.join(_POINTPILLARS)}"])
    others = {
        "other axes than x forward, y left": own.quarter_turn != 0,
        f"{own.earlier_sweeps + 1} sweeps together": own.earlier_sweeps > 0,
        f"intensities up to {own.intensity:g}": own.intensity != 1,
    }
    if trained_with := [name for name, applies in others.items() if applies]:
        raise InvalidInputError(
            f"{model.config} cannot be trained further here: it was trained with {', '.join(trained_with)}, and "
            "recipes train with x forward, on one sweep, with intensities up to 1. Train it in mmdet3d, and import "
            "the result"
        )
    try:
        pointpillars = _with_sizes(own.model, base)
        built_settings = checked_settings(pointpillars.settings(own.lidar_input()), LIDAR_DETECTORS)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise _refusal(model, [f"{type(error).__name__}: {error}"]) from error
    problems = list(differences(_network_settings(own.model), _network_settings(built_settings)))
    if problems:
        raise _refusal(model, problems)
    return pointpillars


def as_fcos3d(model: MMDet3DModel) -> FCOS3D:
    """The network of ``model``, the user's own configuration, for further training with mmdet3d's losses.

    Raises InvalidInputError with the differing settings if its outputs have another form than recipes here train.
    """
    assert model.own_camera is not None
    own = model.own_camera
    head, preprocessor = part_settings(own.model, "bbox_head"), part_settings(own.model, "data_preprocessor")
    coder = head.get("bbox_coder") or {}
    requirements = {
        "type": (own.model["type"], "FCOSMono3D"),
        "bbox_head.type": (head.get("type"), "FCOSMono3DHead"),
        "bbox_head.strides": (head.get("strides"), list(STRIDES)),
        "bbox_head.group_reg_dims": (head.get("group_reg_dims"), [2, 1, 3, 1]),
        "bbox_head.pred_velo": (bool(head.get("pred_velo", False)), False),
        "bbox_head.pred_attrs": (bool(head.get("pred_attrs", False)), False),
        "bbox_head.use_direction_classifier": (bool(head.get("use_direction_classifier", True)), True),
        "bbox_head.bbox_coder.code_size": (coder.get("code_size"), _CODE_SIZE),
        "data_preprocessor.pad_size_divisor": (preprocessor.get("pad_size_divisor"), Normalisation().stride),
        "data_preprocessor.rgb_to_bgr": (bool(preprocessor.get("rgb_to_bgr", False)), False),
        "the number of colours in data_preprocessor.mean": (_colour_count(preprocessor.get("mean")), 3),
        "the number of colours in data_preprocessor.std": (_colour_count(preprocessor.get("std")), 3),
    }
    if problems := [
        f"{name} is {value}, not {expected}" for name, (value, expected) in requirements.items() if value != expected
    ]:
        raise InvalidInputError(
            f"{model.config} cannot be trained further here: recipes train FCOS3D without velocities and attributes, "
            f"and in this network {'; '.join(problems[:_MAX_DIFFERENCES_SHOWN])}. Train it in mmdet3d, and import the "
            "result"
        )
    return FCOS3D(own=own)


def check_shipped(model: MMDet3DModel) -> None:
    """Raises InvalidInputError if no recipe has a network with the parts of ``model``, a shipped configuration."""
    if (model.sensor, model.family.data) == ("lidar", "nuScenes") or model.family.name.startswith(("PGD", "SMOKE")):
        raise InvalidInputError(
            f"{model.config} ({model.family.name}) cannot be trained further here: recipes train KITTI's PointPillars "
            "and FCOS3D. Train it in mmdet3d, and import the result"
        )


def _colour_count(values: Any) -> int:
    """The number of colours that a setting has values for."""
    return len(values) if isinstance(values, list) else 0


def _with_sizes(settings: Mapping[str, Any], base: PointPillars) -> PointPillars:
    voxels, encoder, test_cfg = (
        settings["data_preprocessor"]["voxel_layer"],
        settings["voxel_encoder"],
        settings.get("test_cfg") or {},
    )
    dynamic = settings["type"] == "DynamicVoxelNet"
    widths, layers = settings["backbone"]["out_channels"], settings["backbone"]["layer_nums"]
    upsampling = settings["neck"]["upsample_strides"]
    (features,) = encoder["feat_channels"]
    if not len(widths) == len(layers) == len(upsampling) == 3:
        raise ValueError(f"the backbone has {len(widths)} stages, not 3")
    return replace(
        base,
        pillar_m=float(voxels["voxel_size"][0]),
        dynamic=dynamic,
        points_per_pillar=base.points_per_pillar if dynamic else voxels["max_num_points"],
        pillars=base.pillars if dynamic else (voxels["max_voxels"][0], voxels["max_voxels"][1]),
        features=features,
        layers=(layers[0], layers[1], layers[2]),
        widths=(widths[0], widths[1], widths[2]),
        neck=settings["neck"]["out_channels"][0],
        upsampling=(upsampling[0], upsampling[1], upsampling[2]),
        candidates=test_cfg.get("nms_pre", base.candidates),
        least_score=test_cfg.get("score_thr", base.least_score),
        most_boxes=test_cfg.get("max_num", base.most_boxes),
    )


def _network_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide what the weights compute, without those of losses and of box suppression."""
    settings_without_test = {name: value for name, value in settings.items() if name != "test_cfg"}
    head = {name: value for name, value in settings["bbox_head"].items() if not name.startswith("loss_")}
    return settings_without_test | {"bbox_head": head}


def _refusal(model: MMDet3DModel, problems: list[str]) -> InvalidInputError:
    remaining = f", and {len(problems) - _MAX_DIFFERENCES_SHOWN} more" if len(problems) > _MAX_DIFFERENCES_SHOWN else ""
    return InvalidInputError(
        f"{model.config} cannot be trained further here: recipes build KITTI's PointPillars in any size, and in this "
        f"network {'; '.join(problems[:_MAX_DIFFERENCES_SHOWN])}{remaining}. Train it in mmdet3d, and import the result"
    )
