"""The network of a configuration of the user's own as the network of a recipe, so that it can be trained further."""

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

_LISTED = 4
_CODE = 7


def as_pointpillars(model: MMDet3DModel, base: PointPillars) -> PointPillars:
    """``base``, with its settings of losses and matching, in the sizes of ``model``, which is of an own configuration.

    Refuses a network that ``PointPillars`` does not build, and says in which settings it differs.
    """
    assert model.own is not None
    own = model.own
    if own.quarter_turn or own.earlier_sweeps or own.intensity != 1:
        raise InvalidInputError(
            f"{model.config} learnt in nuScenes' axes, from several sweeps or from intensities up to 255; recipes here "
            "train x forward on one sweep with intensities up to 1"
        )
    try:
        made = _in_sizes_of(own.model, base)
        built = checked_settings(made.settings(own.lidar_input()), LIDAR_DETECTORS)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise _refused(model, [f"{type(error).__name__}: {error}"]) from error
    found = list(differences(_of_network(own.model), _of_network(built)))
    if found:
        raise _refused(model, found)
    return made


def as_fcos3d(model: MMDet3DModel) -> FCOS3D:
    """The network of ``model``, which is of an own configuration, to be trained further by mmdet3d's own losses.

    Refuses a network whose outputs have another form than recipes here train, and says in which settings it differs.
    """
    assert model.own_camera is not None
    own = model.own_camera
    head, colours = part_settings(own.model, "bbox_head"), part_settings(own.model, "data_preprocessor")
    coder = head.get("bbox_coder") or {}
    wanted = {
        "type": (own.model["type"], "FCOSMono3D"),
        "bbox_head.type": (head.get("type"), "FCOSMono3DHead"),
        "bbox_head.strides": (head.get("strides"), list(STRIDES)),
        "bbox_head.group_reg_dims": (head.get("group_reg_dims"), [2, 1, 3, 1]),
        "bbox_head.pred_velo": (bool(head.get("pred_velo", False)), False),
        "bbox_head.pred_attrs": (bool(head.get("pred_attrs", False)), False),
        "bbox_head.bbox_coder.code_size": (coder.get("code_size"), _CODE),
        "data_preprocessor.pad_size_divisor": (colours.get("pad_size_divisor"), Normalisation().stride),
        "data_preprocessor.rgb_to_bgr": (bool(colours.get("rgb_to_bgr", False)), False),
        "the number of colours in data_preprocessor.mean": (_colours(colours.get("mean")), 3),
        "the number of colours in data_preprocessor.std": (_colours(colours.get("std")), 3),
    }
    if found := [f"{name} is {value}, not {known}" for name, (value, known) in wanted.items() if value != known]:
        raise InvalidInputError(
            f"{model.config} cannot be trained further here: recipes train FCOS3D of boxes without velocities and "
            f"attributes, and of this network {'; '.join(found[:_LISTED])}. Go on in mmdet3d, and import what comes of "
            "it"
        )
    return FCOS3D(own=own)


def _colours(values: Any) -> int:
    """How many colours a setting has a value of."""
    return len(values) if isinstance(values, list) else 0


def _in_sizes_of(settings: Mapping[str, Any], base: PointPillars) -> PointPillars:
    voxels, encoder, test = (
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
        candidates=test.get("nms_pre", base.candidates),
        least_score=test.get("score_thr", base.least_score),
        most_boxes=test.get("max_num", base.most_boxes),
    )


def _of_network(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide what the weights compute: without those of losses and of the suppression of boxes."""
    kept = {name: value for name, value in settings.items() if name != "test_cfg"}
    head = {name: value for name, value in settings["bbox_head"].items() if not name.startswith("loss_")}
    return kept | {"bbox_head": head}


def _refused(model: MMDet3DModel, faults: list[str]) -> InvalidInputError:
    more = f", and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
    return InvalidInputError(
        f"{model.config} cannot be trained further here: recipes build KITTI's PointPillars in any size, and of this "
        f"network {'; '.join(faults[:_LISTED])}{more}. Go on in mmdet3d, and import what comes of it"
    )
