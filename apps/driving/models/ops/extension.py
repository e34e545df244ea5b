"""The module that replaces ``mmcv._ext``."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

from apps.driving.models.ops import boxes, deform, focal, point_membership, scatter, voxels

_MODULE_NAME = "mmcv._ext"


class Extension(ModuleType):
    """Has an attribute for every operator; those that are not implemented raise ``NotImplementedError`` when called."""

    nms = staticmethod(boxes.nms)
    nms_rotated = staticmethod(boxes.nms_rotated)
    box_iou_rotated = staticmethod(boxes.box_iou_rotated)
    hard_voxelize_forward = staticmethod(voxels.hard_voxelize_forward)
    dynamic_voxelize_forward = staticmethod(voxels.dynamic_voxelize_forward)
    modulated_deform_conv_forward = staticmethod(deform.modulated_deform_conv_forward)
    modulated_deform_conv_backward = staticmethod(deform.modulated_deform_conv_backward)
    deform_conv_forward = staticmethod(deform.deform_conv_forward)
    deform_conv_backward_input = staticmethod(deform.deform_conv_backward_input)
    deform_conv_backward_parameters = staticmethod(deform.deform_conv_backward_parameters)
    dynamic_point_to_voxel_forward = staticmethod(scatter.dynamic_point_to_voxel_forward)
    dynamic_point_to_voxel_backward = staticmethod(scatter.dynamic_point_to_voxel_backward)
    points_in_boxes_cpu_forward = staticmethod(point_membership.points_in_boxes_cpu_forward)
    points_in_boxes_all_forward = staticmethod(point_membership.points_in_boxes_all_forward)
    points_in_boxes_part_forward = staticmethod(point_membership.points_in_boxes_part_forward)
    sigmoid_focal_loss_forward = staticmethod(focal.sigmoid_focal_loss_forward)
    sigmoid_focal_loss_backward = staticmethod(focal.sigmoid_focal_loss_backward)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> None:
            raise NotImplementedError(
                f"mmcv's operator {name} is compiled code and has no stand-in here; choose a model without it, or "
                "install the full mmcv"
            )

        return missing


def install() -> None:
    """Makes ``mmcv.ops`` importable. Call it before importing mmcv.ops, mmdet or mmdet3d; repeated calls do nothing.

    An installed, compiled ``mmcv._ext`` is not replaced.
    """
    if _MODULE_NAME in sys.modules:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = importlib.util.find_spec(_MODULE_NAME) is not None
    if not compiled:
        sys.modules[_MODULE_NAME] = Extension(_MODULE_NAME, __doc__)
