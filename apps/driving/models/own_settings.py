"""Settings of a network of the user's own: a plain copy, of parts that are known here, within bounds; and its building.

Built are mmdet3d's own classes, and only those that the shipped configurations here are made of (``families``): no
other type of its registries, and nothing that would fetch weights.
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
from shared.errors import InvalidInputError

LIDAR_DETECTORS = ("VoxelNet", "DynamicVoxelNet", "MVXFasterRCNN", "CenterPoint")
CAMERA_DETECTORS = ("FCOSMono3D", "SMOKEMono3D")
_OF_MMDET3D = (
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
_OF_MMDET = (
    *("ResNet", "ResNeXt", "FPN", "FocalLoss", "CrossEntropyLoss", "SmoothL1Loss", "L1Loss", "GaussianFocalLoss"),
    "GIoULoss",
)
PARTS = {name: name for name in _OF_MMDET3D} | {name: f"mmdet.{name}" for name in _OF_MMDET}
"""The types of parts that are built, by their names without a module: how mmdet3d's registry is asked for them."""
_LIBRARIES = ("mmdet3d", "mmdet", "mmcv", "mmengine", "torch")
_SPARSE = "sparse convolution of mmcv, which exists for GPUs alone"
_SPARSE_ENCODERS = ("SparseEncoder", "SparseEncoderSASSD", "SparseUNet")
_LEFT_OUT = ("train_cfg", "init_cfg", "pretrained", "load_from")
"""Of training, or of weights to fetch or to begin with: the checkpoint's own replace them all."""
_LARGEST = 4096
_COUNTS = (
    *("max_voxels", "max_num_points", "nms_pre", "max_num", "max_per_img", "pre_max_size", "post_max_size"),
    *("max_objs", "min_bbox_size"),
)
"""Settings that count points, pillars or boxes, and may be larger than what counts channels and layers."""
_LARGEST_COUNT = 1_000_000
_ENDLESS = 1_000_000_000
"""What stands for no end of the sizes that a level learns from."""
_FROM_ONE = ("strides", "dilations", "channels", "pad_size_divisor")
_MAX_PADDED = 256
_LONGEST_LIST = 256
SHORT_M = 2.5
"""Classes of which an object is no longer than this are matched within half a metre, as KITTI's are."""
_MAX_PARAMETERS = 200_000_000
_SET_ASIDE = 50_000_000
"""How many parameters besides its own a network may make while it is built: RegNet first makes those of a ResNet-50."""


def checked_settings(model: Mapping[str, Any], detectors: Sequence[str]) -> dict[str, Any]:
    """A plain copy of a model's settings without those of training, tuples as lists, types as the registry has them.

    Refuses a model that is none of ``detectors``, parts that are not known here, and numbers and lists beyond what
    runs.
    """
    _part_type(model.get("type"), "model")
    made: dict[str, Any] = _checked(model, "model", "")
    if made["type"] not in detectors:
        raise InvalidInputError(f"model.type is {made['type']!r}; expected {', '.join(detectors)}")
    return made


def check_classes(classes: Sequence[str], of_head: Any) -> None:
    """Refuses names that stand twice, and another number of classes than the head tells apart."""
    if len(set(classes)) != len(classes) or not all(classes):
        raise InvalidInputError(f"the classes are {', '.join(classes)}; each needs a name of its own")
    if of_head != len(classes):
        raise InvalidInputError(
            f"its head tells {of_head} classes apart; those of its data are {', '.join(classes) or 'not given'}"
        )


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
        most = _most(path, key) if isinstance(value, int) else _ENDLESS
        if abs(value) > most and value not in (math.inf, -math.inf):
            told = f"{value:.3g}" if abs(value) <= sys.float_info.max else "a number of hundreds of digits"
            raise InvalidInputError(f"{path} is {told}; at most {most} is taken")
        if math.isnan(value) or (value < 1 and isinstance(value, int) and key.endswith(_FROM_ONE)):
            raise InvalidInputError(f"{path} is {value}; expected a number{'' if math.isnan(value) else ' from 1 up'}")
        return value
    if value is None or isinstance(value, bool) or (isinstance(value, str) and len(value) <= _LONGEST_LIST):
        return value
    raise InvalidInputError(f"{path} is no plain value of a configuration")


def _most(path: str, key: str) -> int:
    """The largest integer that the setting ``key`` at ``path`` may have."""
    if key in _COUNTS:
        return _LARGEST_COUNT
    if key == "regress_ranges":
        return _ENDLESS
    if key == "pad_size_divisor":
        return _MAX_PADDED
    return 16 if key.endswith(("strides", "dilations")) and path != "model.bbox_head.strides" else _LARGEST


def _part_type(kind: Any, path: str) -> str:
    """How the registry is asked for a part: ``mmdet3d.models.SECOND`` and ``SECOND`` are one."""
    module, _, name = kind.rpartition(".") if isinstance(kind, str) else ("", "", "")
    if name in PARTS and (not module or module.partition(".")[0] in _LIBRARIES):
        return PARTS[name]
    reason = f"it needs {_SPARSE}" if name in _SPARSE_ENCODERS else "docs/driving-models.md lists the parts that do"
    raise InvalidInputError(f"{path}.type is {kind!r}, which does not run here: {reason}")


def build_network(settings: Mapping[str, Any], name: str, most_parameters: int | None = None) -> nn.Module:
    """mmdet3d's detector of checked ``settings``, which ``name`` describes.

    Refuses settings that it cannot build, or of far more parameters than ``most_parameters``.
    """
    most = _MAX_PARAMETERS if most_parameters is None else min(most_parameters + _SET_ASIDE, _MAX_PARAMETERS)
    try:
        with _limited_parameters(most):
            return build(dict(settings))
    except Exception as error:  # mmdet3d's constructors raise anything
        said = str(error).strip().rpartition("\n")[2][:300]
        raise InvalidInputError(
            f"mmdet3d cannot build the network that {name} describes: {type(error).__name__}: {said}"
        ) from error


def part_settings(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The settings of the part called ``name``; refuses a model without it."""
    found = settings.get(name)
    if not isinstance(found, Mapping):
        raise InvalidInputError(f"the model has no {name}; docs/driving-models.md lists what runs here")
    return found


def metres(settings: Mapping[str, Any], name: str, count: int) -> tuple[float, ...]:
    """The ``count`` numbers of the setting ``name``, in metres; refuses another number of them, or what is too far."""
    found = settings.get(name)
    if isinstance(found, Sequence) and len(found) == count and all(isinstance(value, int | float) for value in found):
        values = tuple(map(float, found))
        if all(abs(value) < _LARGEST for value in values):
            return values
    raise InvalidInputError(f"{name} is {found}; expected {count} numbers in metres")


def in_words(values: Sequence[float]) -> str:
    """Numbers as a sentence has them."""
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
