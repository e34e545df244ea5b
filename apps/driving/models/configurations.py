"""Detectors that mmdet3d's own configurations describe, by name and unmodified: the models of its model zoo.

Read are the files in mmdet3d's wheel, and no others: a configuration is a Python program.
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

_NUSCENES_SIZES = "ssn_hv_secfpn_sbn-all_16xb2-2x_nus-3d"
"""The configuration with an anchor for each class, from which the sizes and heights of objects are taken."""
_IMAGES = {"KITTI": (384, 1248), "nuScenes": (928, 1600)}
"""Height and width in pixels, padded to a multiple of 32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MMDet3DModel:
    """A configuration that mmdet3d ships: ``config`` is the name of its file without folder and ``.py``.

    With ``own``, or ``own_camera``, it is one of the user's, and ``config`` what it is called. ``name``, under which
    artifacts of it are kept, follows from the sensor. Without ``fast`` mmdet3d's own modules compute it.
    """

    name: Literal["", "mmdet3d_lidar", "mmdet3d_camera"] = ""
    config: str = "pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class"
    own: OwnConfiguration | None = None
    own_camera: OwnCamera | None = None
    fast: bool = True

    def __post_init__(self) -> None:
        name = f"mmdet3d_{self.sensor}"
        if self.name not in ("", name):
            raise InvalidInputError(f"the configuration {self.config} is of a {self.sensor}'s model, not {self.name}")
        object.__setattr__(self, "name", name)

    @property
    def family(self) -> Family:
        """Of a configuration that mmdet3d ships; refuses another."""
        return family_of(self.config)

    @property
    def sensor(self) -> Literal["lidar", "camera"]:
        if self.is_own:
            return "camera" if self.own is None else "lidar"
        return self.family.sensor

    @property
    def is_own(self) -> bool:
        """Whether it is a configuration of the user's."""
        return self.own is not None or self.own_camera is not None

    def input(self) -> LidarInput | CameraInput:
        """What the configuration says of its input: classes, and the range of points in the LiDAR frame of ``Frame``.

        Cameras are seen at their own focal length, as in mmdet3d's test pipelines.
        """
        if self.own is not None:
            return self.own.lidar_input()
        if self.own_camera is not None:
            return self.own_camera.camera_input()
        document = configuration(self.config)
        classes = object_classes(self.family.data, document.classes)
        if self.sensor == "camera":
            return CameraInput(image=_IMAGES[self.family.data], focal_px=None, classes=classes)
        x0, y0, z0, x1, y1, z1 = map(float, document.model["data_preprocessor"]["voxel_layer"]["point_cloud_range"])
        if self.family.data == "nuScenes":
            x0, y0, x1, y1 = y0, -x1, y1, -x0
        return LidarInput(range_m=(x0, y0, z0, x1, y1, z1), classes=classes)

    def settings(self) -> dict[str, Any]:
        """mmdet3d's settings of the model, without what would download weights."""
        if (own := self.own or self.own_camera) is not None:
            return dict(own.model)
        settings: dict[str, Any] = without_downloads(configuration(self.config).model)
        return settings

    def build(self, input: LidarInput | CameraInput | None = None, *, most_parameters: int | None = None) -> nn.Module:
        """mmdet3d's detector. Refuses an ``input`` that is not what the configuration says (``input()``), and an own
        one that makes far more parameters than ``most_parameters``.

        The order of its classes may be another: that in which the weights were trained.
        """
        own = self.input()
        if input is not None and replace(input, classes=_sorted(input)) != replace(own, classes=_sorted(own)):
            raise InvalidInputError(
                f"the configuration {self.config} has {own}; input says {input}. Leave input as it is, or train "
                "pointpillars or fcos3d, which are built for what input says"
            )
        if self.is_own:
            return build_network(self.settings(), self.config, most_parameters)
        return build(self.settings())

    def compiled_parts(self, model: nn.Module) -> tuple[nn.Module, ...]:
        """Backbone, neck and head."""
        return dense_parts(model)


@dataclass(frozen=True, kw_only=True, slots=True)
class Configuration:
    """A shipped configuration: settings of the model, class names in the order of its labels, steps of its test."""

    model: Mapping[str, Any]
    classes: tuple[str, ...]
    pipeline: tuple[Mapping[str, Any], ...]

    def step(self, kind: str) -> Mapping[str, Any] | None:
        """The settings of a step of the test pipeline, or None where there is none of that type."""
        return next((step for step in self.pipeline if step["type"] == kind), None)


@cache
def configuration(name: str) -> Configuration:
    """The configuration that mmdet3d ships under ``name``; refuses others, and those that do not run here."""
    family_of(name)
    load()
    from mmengine.config import Config

    shipped = importlib.resources.files("mmdet3d") / ".mim" / "configs"
    (found,) = (
        folder / f"{name}.py" for folder in shipped.iterdir() if folder.is_dir() and (folder / f"{name}.py").is_file()
    )
    with importlib.resources.as_file(found) as file:
        document = Config.fromfile(file)
    data = document.test_dataloader.dataset.to_dict()
    return Configuration(
        model=document.model.to_dict(), classes=tuple(data["metainfo"]["classes"]), pipeline=tuple(data["pipeline"])
    )


@cache
def object_classes(data: str, names: tuple[str, ...]) -> tuple[ObjectClass, ...]:
    """The classes of KITTI or nuScenes called ``names``, with the sizes of mmdet3d's anchors for them."""
    if data == "KITTI":
        known = {kind.name: kind for kind in KITTI_CLASSES}
    else:
        document = configuration(_NUSCENES_SIZES)
        anchors = document.model["pts_bbox_head"]["anchor_generator"]
        known = {
            name: ObjectClass(name=name, size_m=tuple(size), bottom_m=place[2])
            for name, size, place in zip(document.classes, anchors["sizes"], anchors["ranges"], strict=True)
        }
    return tuple(known[name.lower()] for name in names)


def _sorted(input: LidarInput | CameraInput) -> tuple[ObjectClass, ...]:
    return tuple(sorted(input.classes, key=lambda kind: kind.name))


def without_downloads(settings: Any) -> Any:
    """A copy of a model's settings in which no ``init_cfg`` names weights to fetch (``Pretrained``)."""
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
