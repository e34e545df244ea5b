"""A LiDAR detector of mmdet3d in a configuration of the user's own: plain settings, checked before anything is built.

Built are mmdet3d's own classes, and only those that the shipped configurations here are made of (``families``): no
other type of its registries, and nothing that would fetch weights.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from apps.driving.models.library import build
from apps.driving.types import LidarInput, ObjectClass
from shared.errors import InvalidInputError

_DETECTORS = ("VoxelNet", "DynamicVoxelNet", "MVXFasterRCNN", "CenterPoint")
_OF_MMDET3D = (
    *_DETECTORS,
    *("Det3DDataPreprocessor", "PillarFeatureNet", "DynamicPillarFeatureNet", "HardVFE", "PointPillarsScatter"),
    *("SECOND", "NoStemRegNet", "SECONDFPN", "Anchor3DHead", "FreeAnchor3DHead", "ShapeAwareHead", "CenterHead"),
    *("SeparateHead", "DCNSeparateHead", "DeltaXYZWLHRBBoxCoder", "CenterPointBBoxCoder"),
    *("Anchor3DRangeGenerator", "AlignedAnchor3DRangeGenerator", "AlignedAnchor3DRangeGeneratorPerCls"),
    *("BN", "BN1d", "BN2d", "SyncBN", "naiveSyncBN1d", "naiveSyncBN2d", "GN", "Conv2d", "DCN", "ReLU", "deconv"),
)
_OF_MMDET = ("FPN", "FocalLoss", "CrossEntropyLoss", "SmoothL1Loss", "L1Loss", "GaussianFocalLoss")
PARTS = {name: name for name in _OF_MMDET3D} | {name: f"mmdet.{name}" for name in _OF_MMDET}
"""The types of parts that are built, by their names without a module: how mmdet3d's registry is asked for them."""
_LIBRARIES = ("mmdet3d", "mmdet", "mmcv", "mmengine", "torch")
_SPARSE = "sparse convolution of mmcv, which exists for GPUs alone"
_LACKS = {
    "SparseEncoder": _SPARSE,
    "SparseEncoderSASSD": _SPARSE,
    "SparseUNet": _SPARSE,
    "FCOSMono3D": "camera",
    "PGD": "camera",
    "SMOKEMono3D": "camera",
}
_LEFT_OUT = ("train_cfg", "init_cfg", "pretrained", "load_from")
"""Of training, or of weights to fetch or to begin with: the checkpoint's own replace them all."""
_LARGEST = 4096
_COUNTS = (
    *("max_voxels", "max_num_points", "nms_pre", "max_num", "max_per_img", "pre_max_size", "post_max_size"),
    *("max_objs", "min_bbox_size"),
)
"""Settings that count points, pillars or boxes, and may be larger than what counts channels and layers."""
_LARGEST_COUNT = 1_000_000
_LONGEST_LIST = 256
_MOST_CELLS = 2048 * 2048
_MOST_ANCHORS = 1 << 27
_MOST_IN_PILLARS = 1 << 24
_MOST_PARAMETERS = 200_000_000
_SET_ASIDE = 50_000_000
"""How many parameters besides its own a network may make while it is built: RegNet first makes those of a ResNet-50."""
_SHORT_M = 2.5
"""Classes of which an object is no longer than this are matched within half a metre, as KITTI's are."""
_ASSUMED_SIZE_M, _ASSUMED_BOTTOM_M = (4.0, 1.8, 1.6), -1.7


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnConfiguration:
    """What the configuration that a detector was trained by says of its network, in JSON types.

    ``model`` are mmdet3d's settings without those of training, ``classes`` the names in the order of its labels.
    ``columns``, ``intensity``, ``quarter_turn``, ``earlier_sweeps`` and ``remove_close`` are those of
    ``detectors.PointLayout``. Raises ``InvalidInputError`` where a part is not known here, or does not fit the others.
    """

    model: Mapping[str, Any]
    classes: tuple[str, ...]
    columns: tuple[int, ...] = (0, 1, 2, 3)
    intensity: float = 1.0
    quarter_turn: bool = False
    earlier_sweeps: int = 0
    remove_close: bool = False

    def __post_init__(self) -> None:
        _part_type(self.model.get("type"), "model")
        object.__setattr__(self, "model", checked_settings(self.model))
        object.__setattr__(self, "classes", tuple(name.lower() for name in self.classes))
        if self.model.get("type") not in _DETECTORS:
            raise InvalidInputError(f"model.type is {self.model.get('type')!r}; expected {', '.join(_DETECTORS)}")
        if len(set(self.classes)) != len(self.classes) or not all(self.classes):
            raise InvalidInputError(f"the classes are {', '.join(self.classes)}; each needs a name of its own")
        try:
            self._check_head()
            self._check_pillars()
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise InvalidInputError(f"the model's settings are not of the form that mmdet3d takes: {error}") from error

    @property
    def voxel_layer(self) -> Mapping[str, Any]:
        return _mapping(_mapping(self.model, "data_preprocessor"), "voxel_layer")

    @property
    def range_m(self) -> tuple[float, ...]:
        """x, y, z from and to in metres, in mmdet3d's own axes."""
        return _numbers(self.voxel_layer, "point_cloud_range", 6)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows (y) and columns (x) of pillars, in mmdet3d's own axes."""
        low, high, sides = self.range_m[:3], self.range_m[3:], _numbers(self.voxel_layer, "voxel_size", 3)
        if not all(0 < side <= to - start for side, start, to in zip(sides, low, high, strict=True)):
            raise InvalidInputError(f"voxels of {_said(sides)} m do not fill the range {_said(self.range_m)} m")
        counts = [round((to - start) / side) for side, start, to in zip(sides, low, high, strict=True)]
        if counts[2] != 1:
            raise InvalidInputError(f"the grid is {counts[2]} voxels high; networks on pillars, of one voxel, run here")
        return counts[1], counts[0]

    def part(self, name: str) -> Mapping[str, Any]:
        """The settings of a part of the network, which MVXFasterRCNN and CenterPoint call ``pts_`` and its name."""
        return _mapping(self.model, name if name in self.model else f"pts_{name}")

    def lidar_input(self) -> LidarInput:
        """What the network sees, in the LiDAR frame of ``Frame``, and looks for."""
        x0, y0, z0, x1, y1, z1 = self.range_m
        if self.quarter_turn:
            x0, y0, x1, y1 = y0, -x1, y1, -x0
        return LidarInput(range_m=(x0, y0, z0, x1, y1, z1), classes=self.object_classes())

    def has_anchor_sizes(self) -> bool:
        """Whether it has an anchor's size for each class."""
        anchors = self.part("bbox_head").get("anchor_generator") or {}
        sizes, ranges = anchors.get("sizes"), anchors.get("ranges")
        return (
            isinstance(sizes, list)
            and isinstance(ranges, list)
            and len(sizes) == len(self.classes)
            and len(ranges) in (1, len(sizes))
            and anchors.get("scales", [1]) == [1]
        )

    def object_classes(self) -> tuple[ObjectClass, ...]:
        """The classes with the sizes and heights of their anchors, or, of a network without, of a car's size."""
        if not self.has_anchor_sizes():
            return tuple(
                ObjectClass(name=name, size_m=_ASSUMED_SIZE_M, bottom_m=_ASSUMED_BOTTOM_M) for name in self.classes
            )
        anchors = self.part("bbox_head")["anchor_generator"]
        made = []
        for number, name in enumerate(self.classes):
            length, width, height = _numbers({"sizes": anchors["sizes"][number]}, "sizes", 3)
            bottom = _numbers({"ranges": anchors["ranges"][number % len(anchors["ranges"])]}, "ranges", 6)[2]
            reach = 0.5 if length <= _SHORT_M else 1.0
            made.append(ObjectClass(name=name, size_m=(length, width, height), bottom_m=bottom, reach_m=reach))
        return tuple(made)

    def build(self, name: str, most_parameters: int = _MOST_PARAMETERS) -> nn.Module:
        """mmdet3d's detector; refuses settings that it cannot build, or of far more parameters than
        ``most_parameters``."""
        try:
            with _limited_parameters(min(most_parameters + _SET_ASIDE, _MOST_PARAMETERS)):
                return build(dict(self.model))
        except Exception as error:  # mmdet3d's constructors raise anything
            said = str(error).strip().rpartition("\n")[2][:300]
            raise InvalidInputError(
                f"mmdet3d cannot build the network that {name} describes: {type(error).__name__}: {said}"
            ) from error

    def _check_head(self) -> None:
        head = self.part("bbox_head")
        if "tasks" in head and "num_classes" not in head:
            count = sum(task.get("num_class", len(task.get("class_names", []))) for task in head["tasks"])
        else:
            count = head.get("num_classes", 0)
        if count != len(self.classes):
            raise InvalidInputError(
                f"its head tells {count} classes apart; those of its data are {', '.join(self.classes) or 'not given'}"
            )

    def _check_pillars(self) -> None:
        rows, columns = self.grid
        shape = self.part("middle_encoder").get("output_shape")
        if shape != [rows, columns]:
            raise InvalidInputError(
                f"middle_encoder.output_shape is {shape}; range and voxels make {[rows, columns]} (rows, columns)"
            )
        generator = self.part("bbox_head").get("anchor_generator") or {}
        anchors = math.prod(len(generator.get(name) or [0]) for name in ("sizes", "rotations", "scales"))
        most = self.voxel_layer.get("max_voxels", 20000)
        points = self.voxel_layer.get("max_num_points", 0) * max(most if isinstance(most, list) else [most])
        if rows * columns > _MOST_CELLS or rows * columns * anchors > _MOST_ANCHORS or points > _MOST_IN_PILLARS:
            raise InvalidInputError(
                f"a grid of {rows} by {columns} pillars with {anchors} anchors each, or {points} points in pillars, "
                "are more than is computed here"
            )
        taken = self.part("voxel_encoder").get("in_channels", 4)
        if taken != len(self.columns) or not {0, 1, 2} <= set(self.columns) or max(self.columns) > 4:
            raise InvalidInputError(
                f"its encoder takes {taken} columns of a point; the test pipeline gives the columns "
                f"{_said(self.columns)} of the file, of which x, y, z, the intensity and the time of a sweep are known"
            )
        if 4 in self.columns and not self.earlier_sweeps:
            raise InvalidInputError(
                "its network takes the fifth column of the points' file, which is not the time of a sweep "
                "(LoadPointsFromMultiSweeps); a frame has x, y, z and the intensity alone"
            )


def checked_settings(model: Mapping[str, Any]) -> dict[str, Any]:
    """A plain copy of a model's settings without those of training, tuples as lists, types as the registry has them.

    Refuses parts that are not known here, and numbers and lists beyond what runs.
    """
    made: dict[str, Any] = _checked(model, "model", "")
    return made


def _checked(value: Any, path: str, key: str) -> Any:
    if isinstance(value, Mapping):
        made = {
            str(name): _checked(part, f"{path}.{name}", str(name))
            for name, part in value.items()
            if name not in _LEFT_OUT and not str(name).startswith("_")
        }
        if "type" in made:
            made["type"] = _part_type(made["type"], path)
        return made
    if isinstance(value, list | tuple):
        if len(value) > _LONGEST_LIST:
            raise InvalidInputError(f"{path} has {len(value)} values; at most {_LONGEST_LIST} are taken")
        return [_checked(part, path, key) for part in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        most = _LARGEST_COUNT if key in _COUNTS else 16 if key.endswith("strides") else _LARGEST
        if isinstance(value, int) and abs(value) > most:
            raise InvalidInputError(f"{path} is {value:.3g}; at most {most} is taken")
        return value
    if value is None or isinstance(value, bool) or (isinstance(value, str) and len(value) <= _LONGEST_LIST):
        return value
    raise InvalidInputError(f"{path} is no plain value of a configuration")


def _part_type(kind: Any, path: str) -> str:
    """How the registry is asked for a part: ``mmdet3d.models.SECOND`` and ``SECOND`` are one."""
    module, _, name = kind.rpartition(".") if isinstance(kind, str) else ("", "", "")
    if name in PARTS and (not module or module.partition(".")[0] in _LIBRARIES):
        return PARTS[name]
    lack = _LACKS.get(name)
    if lack == "camera":
        reason = "camera models are imported by the name of the configuration that mmdet3d ships alone"
    elif lack is not None:
        reason = f"it needs {lack}"
    else:
        reason = "docs/driving-models.md lists the parts that do"
    raise InvalidInputError(f"{path}.type is {kind!r}, which does not run here: {reason}")


def _mapping(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = settings.get(name)
    if not isinstance(found, Mapping):
        raise InvalidInputError(f"the model has no {name}; networks on pillars run here (docs/driving-models.md)")
    return found


def _numbers(settings: Mapping[str, Any], name: str, count: int) -> tuple[float, ...]:
    found = settings.get(name)
    if isinstance(found, Sequence) and len(found) == count and all(isinstance(value, int | float) for value in found):
        values = tuple(map(float, found))
        if all(abs(value) < _LARGEST for value in values):
            return values
    raise InvalidInputError(f"{name} is {found}; expected {count} numbers in metres")


def _said(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


@contextmanager
def _limited_parameters(most: int) -> Iterator[None]:
    """While it is open this thread makes no more parameters; raised before their memory is written to."""
    thread, total = threading.get_ident(), 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal total
        if parameter is None or threading.get_ident() != thread:
            return
        total += parameter.numel()
        if total > most:
            raise ValueError(
                f"it has over {most} parameters, far more than the checkpoint, or more than are built here"
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
