"""Detectors built from mmdet3d's own configurations, unmodified and by name: the models of its model zoo.

Only the files in mmdet3d's wheel are executed, and no others: a configuration is a Python program.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from torch import nn

from apps.driving.models.families import Family, family_of
from apps.driving.models.library import build, dense_parts, load
from apps.driving.models.own import OwnConfiguration
from apps.driving.models.own_camera import OwnCamera
from apps.driving.models.own_settings import build_network
from apps.driving.types import KITTI_CLASSES, CameraInput, LidarInput, ObjectClass
from shared.errors import InvalidInputError
from shared.recipe_file import from_mapping

_NUSCENES_SIZES_CONFIG = "ssn_hv_secfpn_sbn-all_16xb2-2x_nus-3d"
"""The configuration that nuScenes' class sizes and heights are taken from: it has an anchor for each class."""
_IMAGE_SIZES = {"KITTI": (384, 1248), "nuScenes": (928, 1600)}
"""Height and width in pixels, padded to multiples of 32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MMDet3DModel:
    """A configuration that mmdet3d ships: ``config`` is its file's name without folder and ``.py``.

    With ``own`` or ``own_camera`` it is the user's own configuration, and ``config`` is its title. ``name``, the name
    of its artifacts, follows from the sensor. Without ``fast``, mmdet3d's own modules compute it.
    """

    name: Literal["", "mmdet3d_lidar", "mmdet3d_camera"] = ""
    config: str = "pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class"
    own: OwnConfiguration | None = None
    own_camera: OwnCamera | None = None
    fast: bool = True

    def __post_init__(self) -> None:
        name = f"mmdet3d_{self.sensor}"
        if self.name not in ("", name):
            raise InvalidInputError(f"the configuration {self.config} is for a {self.sensor} model, not {self.name}")
        object.__setattr__(self, "name", name)

    @property
    def family(self) -> Family:
        """The family of a shipped configuration; raises InvalidInputError for the user's own."""
        return family_of(self.config)

    @property
    def sensor(self) -> Literal["lidar", "camera"]:
        if self.is_own:
            return "camera" if self.own is None else "lidar"
        return self.family.sensor

    @property
    def is_own(self) -> bool:
        """Whether it is the user's own configuration."""
        return self.own is not None or self.own_camera is not None

    def input(self) -> LidarInput | CameraInput:
        """The input that the configuration defines: the classes, and the range of points in the LiDAR frame of
        ``Frame``.

        Camera images keep their own focal length, as in mmdet3d's test pipelines.
        """
        if self.own is not None:
            return self.own.lidar_input()
        if self.own_camera is not None:
            return self.own_camera.camera_input()
        document = configuration(self.config)
        classes = object_classes(self.family.data, document.classes)
        if self.sensor == "camera":
            return CameraInput(image=_IMAGE_SIZES[self.family.data], focal_px=None, classes=classes)
        x0, y0, z0, x1, y1, z1 = map(float, document.model["data_preprocessor"]["voxel_layer"]["point_cloud_range"])
        if self.family.data == "nuScenes":
            x0, y0, x1, y1 = y0, -x1, y1, -x0
        return LidarInput(range_m=(x0, y0, z0, x1, y1, z1), classes=classes)

    def read_input(self, settings: Mapping[str, Any]) -> LidarInput | CameraInput:
        """The input in an artifact's settings."""
        return from_mapping(LidarInput, settings) if self.sensor == "lidar" else from_mapping(CameraInput, settings)

    def settings(self) -> dict[str, Any]:
        """mmdet3d's settings of the model, without those that would download weights."""
        if (own := self.own or self.own_camera) is not None:
            return dict(own.model)
        settings: dict[str, Any] = without_downloads(configuration(self.config).model)
        return settings

    def build(self, input: LidarInput | CameraInput | None = None, *, max_parameters: int | None = None) -> nn.Module:
        """mmdet3d's detector. Raises InvalidInputError if ``input`` differs from the configuration's (``input()``), or
        if the user's own configuration creates far more than ``max_parameters`` parameters.

        Only the order of the classes may differ: it is the one that the weights were trained with.
        """
        config_input = self.input()
        if input is not None and replace(input, classes=_sorted_classes(input)) != replace(
            config_input, classes=_sorted_classes(config_input)
        ):
            raise InvalidInputError(
                f"the configuration {self.config} has {config_input}; input is {input}. Leave input unchanged, or "
                "train pointpillars or fcos3d, which are built for any input"
            )
        if self.is_own:
            return build_network(self.settings(), self.config, max_parameters)
        return build(self.settings())

    def compiled_parts(self, model: nn.Module) -> tuple[nn.Module, ...]:
        """Backbone, neck and head."""
        return dense_parts(model)


@dataclass(frozen=True, kw_only=True, slots=True)
class Configuration:
    """A shipped configuration: the model's settings, the class names in label order, the test pipeline's steps."""

    model: Mapping[str, Any]
    classes: tuple[str, ...]
    pipeline: tuple[Mapping[str, Any], ...]

    def step(self, kind: str) -> Mapping[str, Any] | None:
        """The settings of the test pipeline's first step of type ``kind``, or None if there is none."""
        return next((step for step in self.pipeline if step["type"] == kind), None)


@cache
def configuration(name: str) -> Configuration:
    """The configuration that mmdet3d ships as ``name``; raises InvalidInputError if it is unknown or does not run."""
    family_of(name)
    load()
    from mmengine.config import Config

    shipped = importlib.resources.files("mmdet3d") / ".mim" / "configs"
    (path,) = (
        folder / f"{name}.py" for folder in shipped.iterdir() if folder.is_dir() and (folder / f"{name}.py").is_file()
    )
    with importlib.resources.as_file(path) as file:
        document = Config.fromfile(file)
    data = document.test_dataloader.dataset.to_dict()
    return Configuration(
        model=document.model.to_dict(), classes=tuple(data["metainfo"]["classes"]), pipeline=tuple(data["pipeline"])
    )


@cache
def object_classes(data: str, names: tuple[str, ...]) -> tuple[ObjectClass, ...]:
    """The classes ``names`` of KITTI or nuScenes, with the sizes of mmdet3d's anchors for them."""
    if data == "KITTI":
        by_name = {kind.name: kind for kind in KITTI_CLASSES}
    else:
        document = configuration(_NUSCENES_SIZES_CONFIG)
        anchors = document.model["pts_bbox_head"]["anchor_generator"]
        by_name = {
            name: ObjectClass(name=name, size_m=tuple(size), bottom_m=anchor_range[2])
            for name, size, anchor_range in zip(document.classes, anchors["sizes"], anchors["ranges"], strict=True)
        }
    return tuple(by_name[name.lower()] for name in names)


def _sorted_classes(input: LidarInput | CameraInput) -> tuple[ObjectClass, ...]:
    return tuple(sorted(input.classes, key=lambda kind: kind.name))


def without_downloads(settings: Any) -> Any:
    """A copy of a model's settings without those that download weights: ``load_from``, ``pretrained``, and ``init_cfg``
    of type ``Pretrained``."""
    if isinstance(settings, Mapping):
        return {
            key: without_downloads(value)
            for key, value in settings.items()
            if not (key == "init_cfg" and _is_pretrained(value)) and key not in ("load_from", "pretrained")
        }
    if isinstance(settings, (list, tuple)):
        return type(settings)(without_downloads(value) for value in settings)
    return settings


def _is_pretrained(settings: Any) -> bool:
    parts: Sequence[Any] = settings if isinstance(settings, (list, tuple)) else (settings,)
    return any(isinstance(part, Mapping) and part.get("type") == "Pretrained" for part in parts)
