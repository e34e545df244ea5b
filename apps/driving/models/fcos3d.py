"""FCOS3D (Wang et al., 2021): mmdet3d's ``FCOSMono3D``, built from its nuScenes configuration with unmodified classes.

With ``resnet101_dcn`` it has the configuration's own backbone and head. The other backbones and their head
(``dcn_on_last_conv=False``) have no deformable convolution, so that they can be exported. KITTI's boxes have neither
velocity nor attributes, so that a box is 7 numbers. For the published weights see ``configurations.MMDet3DModel``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from apps.driving.models.decoding import CameraDecoder, Normalisation
from apps.driving.models.library import build, dense_parts, shipped_config
from apps.driving.models.own_camera import OwnCamera
from apps.driving.models.own_settings import numbers_setting, part_settings
from apps.driving.types import CameraInput
from shared.recipe import Axis

_CONFIG_PATH = "fcos3d/fcos3d_r101-caffe-dcn_fpn_head-gn_8xb2-1x_nus-mono3d.py"
_CODE_WEIGHT = (1.0, 1.0, 0.2, 1.0, 1.0, 1.0, 1.0)
STRIDES = (8, 16, 32, 64, 128)


@dataclass(frozen=True, kw_only=True, slots=True)
class FCOS3D:
    """``backbone`` is ResNet-18 with ``base_width`` channels, ResNet-101 with deformable convolution in its last two
    stages (the paper's), or ResNeXt-101 with 32 groups of 4 or 8 channels. ``head`` is the head's number of channels.

    With ``priors`` the head predicts depth and size relative to a mean (an option of mmdet3d's coder), which trains in
    minutes; the mean sizes are those of the input's classes.

    With ``own`` it is the imported FCOS3D of a user's own configuration, from ``own_training.as_fcos3d``; the settings
    above are then ignored.
    """

    sensor: ClassVar[Literal["camera"]] = "camera"
    name: Literal["fcos3d"] = "fcos3d"
    backbone: Literal["resnet18", "resnet101_dcn", "resnext101_32x4d", "resnext101_32x8d"] = "resnext101_32x8d"
    base_width: int = 64
    head: int = 256
    priors: bool = False
    own: OwnCamera | None = None

    def settings(self, input: CameraInput) -> dict[str, Any]:
        """mmdet3d's configuration with these settings, for the input's classes."""
        model = shipped_config(_CONFIG_PATH)
        if self.own is not None:
            return _own_settings(self.own, input, model["train_cfg"])
        deformable = self.backbone == "resnet101_dcn"
        if deformable:
            # The network takes BGR, as its published weights expect; images here are RGB.
            model["data_preprocessor"].update(bgr_to_rgb=True)
        else:
            model["data_preprocessor"].update(
                mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=False
            )
        # Nothing is frozen: all weights are trained.
        trainable = {"frozen_stages": -1, "norm_cfg": {"type": "BN", "requires_grad": True}, "norm_eval": False}
        stages = {"num_stages": 4, "out_indices": (0, 1, 2, 3), "style": "pytorch"}
        widths = [256, 512, 1024, 2048]
        if deformable:
            model["backbone"] = {k: v for k, v in model["backbone"].items() if k != "init_cfg"} | trainable
        elif self.backbone == "resnet18":
            widths = [self.base_width * factor for factor in (1, 2, 4, 8)]
            model["backbone"] = {
                "type": "mmdet.ResNet",
                "depth": 18,
                "base_channels": self.base_width,
                **stages,
                **trainable,
            }
        else:
            width = {"resnext101_32x4d": 4, "resnext101_32x8d": 8}[self.backbone]
            model["backbone"] = {
                "type": "mmdet.ResNeXt",
                "depth": 101,
                "groups": 32,
                "base_width": width,
                **stages,
                **trainable,
            }
        model["neck"].update(in_channels=widths, out_channels=self.head)
        coder: dict[str, Any] = {"type": "FCOS3DBBoxCoder", "code_size": 7}
        if self.priors:
            coder |= {"base_depths": ((28.0, 16.0),), "base_dims": _base_dims(input)}
        model["bbox_head"].update(
            num_classes=len(input.classes),
            in_channels=self.head,
            feat_channels=self.head,
            pred_attrs=False,
            pred_velo=False,
            bbox_code_size=7,
            group_reg_dims=(2, 1, 3, 1),
            cls_branch=(self.head,),
            reg_branch=((self.head,),) * 4,
            dir_branch=(self.head,),
            centerness_branch=(64,),
            bbox_coder=coder,
            dcn_on_last_conv=deformable,
        )
        model["train_cfg"]["code_weight"] = list(_CODE_WEIGHT)
        return model

    @property
    def colours(self) -> Normalisation:
        """The normalisation of images, as in ``settings``."""
        if self.own is not None:
            preprocessor = part_settings(self.own.model, "data_preprocessor")
            mean, std = (numbers_setting(preprocessor, name, 3, "grey levels") for name in ("mean", "std"))
            return Normalisation(
                mean=(mean[0], mean[1], mean[2]),
                std=(std[0], std[1], std[2]),
                is_bgr=not preprocessor.get("bgr_to_rgb", False),
            )
        if self.backbone == "resnet101_dcn":
            return Normalisation(mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0), is_bgr=True)
        return Normalisation()

    @property
    def direction_offset(self) -> float:
        """The head's ``dir_offset`` in radians: where the half circle of yaw angles begins that a direction selects."""
        if self.own is None:
            return CameraDecoder().direction_offset
        return float(part_settings(self.own.model, "bbox_head").get("dir_offset", 0.0))

    def build(self, input: CameraInput) -> nn.Module:
        return build(self.settings(input))

    def compiled_parts(self, model: nn.Module) -> tuple[nn.Module, ...]:
        """Backbone, neck and head."""
        return dense_parts(model)

    def class_axes(self, classes: Sequence[str]) -> dict[str, Axis]:
        """The parameters of the head's scores; its other outputs do not depend on the class."""
        return {f"bbox_head.conv_cls.{part}": Axis(0, classes) for part in ("weight", "bias")}


def _base_dims(input: CameraInput) -> tuple[tuple[float, float, float], ...]:
    """Length, height and width of each class, in the order of mmdet3d's coder."""
    return tuple((length, height, width) for length, width, height in (kind.size_m for kind in input.classes))


def _own_settings(own: OwnCamera, input: CameraInput, train_cfg: dict[str, Any]) -> dict[str, Any]:
    """mmdet3d's settings of a user's own network, for the input's classes, with the shipped one's ``train_cfg``."""
    model = copy.deepcopy(dict(own.model))
    head, preprocessor = model["bbox_head"], model["data_preprocessor"]
    head["num_classes"] = len(input.classes)
    if own.has_base_sizes():
        head["bbox_coder"]["base_dims"] = _base_dims(input)
    # mmdet3d's loader reads BGR; images here are RGB.
    preprocessor["bgr_to_rgb"] = not preprocessor.get("bgr_to_rgb", False)
    return model | {"train_cfg": train_cfg | {"code_weight": list(_CODE_WEIGHT)}}


class ImageToHeads(nn.Module):
    """The dense network: from a normalised image (B, 3, H, W) to scores, boxes, directions and centerness per level.

    It has twenty outputs: for each of the strides 8, 16, 32, 64 and 128 (B, C, h, w) for C classes, (B, 7, h, w),
    (B, 2, h, w) and (B, 1, h, w).
    """

    backbone: nn.Module
    neck: nn.Module
    bbox_head: nn.Module

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.neck, self.bbox_head = detector.backbone, detector.neck, detector.bbox_head

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        scores, boxes, directions, _, centerness = self.bbox_head(self.neck(self.backbone(image)))
        return tuple(map_ for level in zip(scores, boxes, directions, centerness, strict=True) for map_ in level)


OUTPUTS = tuple(
    f"{output}_{stride}" for stride in STRIDES for output in ("scores", "boxes", "directions", "centerness")
)


def example_image(height: int, width: int, batch: int = 1) -> Tensor:
    """Random normalised images (B, 3, H, W), for export and for timing."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, height, width, generator=generator)
