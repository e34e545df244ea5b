"""Checks the settings of a user's own network (known parts, plain values within bounds), and builds it.

Only the mmdet3d classes that the shipped configurations here use (``families``) are built: no other type of its
registries, and nothing that would download weights.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from apps.driving.models.library import build
from apps.driving.types import ASSUMED_BOTTOM_M, ASSUMED_SIZE_M, ObjectClass
from shared.errors import InvalidInputError

LIDAR_DETECTORS = ("VoxelNet", "DynamicVoxelNet", "MVXFasterRCNN", "CenterPoint")
CAMERA_DETECTORS = ("FCOSMono3D", "SMOKEMono3D")
_MMDET3D_TYPES = (
    *LIDAR_DETECTORS,
    *("Det3DDataPreprocessor", "PillarFeatureNet", "DynamicPillarFeatureNet", "HardVFE", "PointPillarsScatter"),
    *("SECOND", "NoStemRegNet", "SECONDFPN", "Anchor3DHead", "FreeAnchor3DHead", "ShapeAwareHead", "CenterHead"),
    *("SeparateHead", "DCNSeparateHead", "DeltaXYZWLHRBBoxCoder", "CenterPointBBoxCoder"),
    *("Anchor3DRangeGenerator", "AlignedAnchor3DRangeGenerator", "AlignedAnchor3DRangeGeneratorPerCls"),
    *CAMERA_DETECTORS,
    *("DLANet", "DLANeck", "FCOSMono3DHead", "PGDHead", "SMOKEMono3DHead"),
    *("FCOS3DBBoxCoder", "PGDBBoxCoder", "SMOKECoder", "UncertainSmoothL1Loss", "UncertainL1Loss"),
    *("BN", "BN1d", "BN2d", "SyncBN", "naiveSyncBN1d", "naiveSyncBN2d", "GN", "Conv2d", "DCN", "DCNv2", "ReLU"),
    "deconv",
)
_MMDET_TYPES = (
    *("ResNet", "ResNeXt", "FPN", "FocalLoss", "CrossEntropyLoss", "SmoothL1Loss", "L1Loss", "GaussianFocalLoss"),
    "GIoULoss",
)
REGISTRY_NAMES = {name: name for name in _MMDET3D_TYPES} | {name: f"mmdet.{name}" for name in _MMDET_TYPES}
"""The name in mmdet3d's registry of each type that is built, by the type's name without its module."""
_LIBRARIES = ("mmdet3d", "mmdet", "mmcv", "mmengine", "torch")
_SPARSE = "mmcv's sparse convolution, which exists only for GPUs"
_SPARSE_ENCODERS = ("SparseEncoder", "SparseEncoderSASSD", "SparseUNet")
_OMITTED_KEYS = ("train_cfg", "init_cfg", "pretrained", "load_from")
"""Settings of training, and of initial weights: the checkpoint's weights replace them all."""
_MAX_VALUE = 4096
"""The maximum of other integers, such as channels, and of distances in metres."""
_COUNT_KEYS = (
    *("max_voxels", "max_num_points", "nms_pre", "max_num", "max_per_img", "pre_max_size", "post_max_size"),
    *("max_objs", "min_bbox_size"),
)
"""Settings that count points, pillars or boxes, and may be larger than those that count channels and layers."""
_MAX_COUNT = 1_000_000
_MAX_FLOAT = 1_000_000_000
"""The maximum of a float, and of an integer in ``regress_ranges``, in which 1e8 stands for "no upper limit"."""
_POSITIVE_KEYS = ("strides", "dilations", "channels", "pad_size_divisor")
_MAX_PAD_DIVISOR = 256
_MAX_LENGTH = 256
"""Maximum length of a list or a string."""
_MAX_SHORT_LENGTH_M = 2.5
"""Maximum length in metres of a short class: its detections match objects within half a metre, as KITTI's pedestrians
and cyclists do; those of longer classes within a metre."""
_MAX_PARAMETERS = 200_000_000
_MAX_TEMPORARY_PARAMETERS = 50_000_000
"""How many parameters a network may create beyond the checkpoint's while it is built: RegNet first creates a
ResNet-50's."""


def checked_settings(model: Mapping[str, Any], detectors: Sequence[str]) -> dict[str, Any]:
    """A plain copy of a model's settings without those of training, with lists for tuples and registry names for types.

    Raises InvalidInputError if the model is none of ``detectors``, for parts that are not supported here, and for
    numbers and lists that are too large.
    """
    _registry_name(model.get("type"), "model")
    settings: dict[str, Any] = _checked_value(model, "model", "")
    if settings["type"] not in detectors:
        raise InvalidInputError(f"model.type is {settings['type']!r}; expected {', '.join(detectors)}")
    return settings


def check_classes(classes: Sequence[str], head_classes: Any) -> None:
    """Raises InvalidInputError for duplicate names, and if their number differs from the head's ``head_classes``."""
    if len(set(classes)) != len(classes) or not all(classes):
        raise InvalidInputError(f"the classes are {', '.join(classes)}; give each a different name")
    if head_classes != len(classes):
        raise InvalidInputError(
            f"its head has {head_classes} classes; the classes of its data are {', '.join(classes) or 'not given'}"
        )


def object_class(
    name: str, size_m: tuple[float, float, float] = ASSUMED_SIZE_M, bottom_m: float = ASSUMED_BOTTOM_M
) -> ObjectClass:
    """A class of the network; of the assumed size and height if the network states none."""
    reach = 0.5 if size_m[0] <= _MAX_SHORT_LENGTH_M else 1.0
    return ObjectClass(name=name, size_m=size_m, bottom_m=bottom_m, reach_m=reach)


def _checked_value(value: Any, path: str, key: str) -> Any:
    if isinstance(value, Mapping):
        settings = {
            str(name): _checked_value(part, f"{path}.{name}", str(name))
            for name, part in value.items()
            if name not in _OMITTED_KEYS and not str(name).startswith("_")
        }
        if "type" in settings:
            settings["type"] = _registry_name(settings["type"], path)
        return settings
    if isinstance(value, list | tuple):
        if len(value) > _MAX_LENGTH:
            raise InvalidInputError(f"{path} has {len(value)} values; at most {_MAX_LENGTH} are allowed")
        return [_checked_value(part, path, key) for part in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        max_value = _max_value(path, key) if isinstance(value, int) else _MAX_FLOAT
        if abs(value) > max_value and value not in (math.inf, -math.inf):
            number = f"{value:.3g}" if abs(value) <= sys.float_info.max else "a number of hundreds of digits"
            raise InvalidInputError(f"{path} is {number}; at most {max_value} is allowed")
        if math.isnan(value) or (value < 1 and isinstance(value, int) and key.endswith(_POSITIVE_KEYS)):
            raise InvalidInputError(
                f"{path} is {value}; expected a number{'' if math.isnan(value) else ' of at least 1'}"
            )
        return value
    if value is None or isinstance(value, bool) or (isinstance(value, str) and len(value) <= _MAX_LENGTH):
        return value
    raise InvalidInputError(f"{path} is not a plain value")


def _max_value(path: str, key: str) -> int:
    """The maximum integer that the setting ``key`` at ``path`` may have."""
    if key in _COUNT_KEYS:
        return _MAX_COUNT
    if key == "regress_ranges":
        return _MAX_FLOAT
    if key == "pad_size_divisor":
        return _MAX_PAD_DIVISOR
    return 16 if key.endswith(("strides", "dilations")) and path != "model.bbox_head.strides" else _MAX_VALUE


def _registry_name(kind: Any, path: str) -> str:
    """A part's name in the registry: the same for ``mmdet3d.models.SECOND`` and ``SECOND``."""
    module, _, name = kind.rpartition(".") if isinstance(kind, str) else ("", "", "")
    if name in REGISTRY_NAMES and (not module or module.partition(".")[0] in _LIBRARIES):
        return REGISTRY_NAMES[name]
    reason = f"it needs {_SPARSE}" if name in _SPARSE_ENCODERS else "docs/driving-models.md lists the parts that do"
    raise InvalidInputError(f"{path}.type is {kind!r}, which does not run here: {reason}")


def build_network(settings: Mapping[str, Any], name: str, max_parameters: int | None = None) -> nn.Module:
    """mmdet3d's detector for the checked ``settings`` of the configuration ``name``.

    Raises InvalidInputError if mmdet3d cannot build it, or if it creates far more than ``max_parameters`` parameters.
    """
    limit = (
        _MAX_PARAMETERS if max_parameters is None else min(max_parameters + _MAX_TEMPORARY_PARAMETERS, _MAX_PARAMETERS)
    )
    try:
        with _limited_parameters(limit):
            return build(dict(settings))
    except Exception as error:  # mmdet3d's constructors raise anything
        message = str(error).strip().rpartition("\n")[2][:300]
        raise InvalidInputError(
            f"mmdet3d cannot build the network in {name}: {type(error).__name__}: {message}"
        ) from error


def part_settings(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The settings of the part ``name``; raises InvalidInputError if there is none."""
    part = settings.get(name)
    if not isinstance(part, Mapping):
        raise InvalidInputError(f"the model has no {name}; docs/driving-models.md lists what runs here")
    return part


def numbers_setting(settings: Mapping[str, Any], name: str, count: int, unit: str = "metres") -> tuple[float, ...]:
    """The ``count`` numbers of the setting ``name``; raises InvalidInputError for other values, and from 4096 up.

    ``unit`` is the numbers' unit for the error message.
    """
    numbers = settings.get(name)
    if isinstance(numbers, Sequence) and len(numbers) == count and all(isinstance(v, int | float) for v in numbers):
        values = tuple(map(float, numbers))
        if all(abs(value) < _MAX_VALUE for value in values):
            return values
    raise InvalidInputError(f"{name} is {numbers}; expected {count} numbers in {unit}")


def as_text(values: Sequence[float]) -> str:
    """Numbers as text, separated by commas."""
    return ", ".join(f"{value:g}" for value in values)


@contextmanager
def _limited_parameters(limit: int) -> Iterator[None]:
    """Raises ValueError if this thread creates more than ``limit`` parameters, before their memory is written to."""
    thread, total = threading.get_ident(), 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal total
        if parameter is None or threading.get_ident() != thread:
            return
        total += parameter.numel()
        if total > limit:
            raise ValueError(
                f"it has over {limit} parameters, far more than the checkpoint, or more than supported here"
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
