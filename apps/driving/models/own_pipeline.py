"""Reads the data part of a configuration that mmengine dumped: classes, data sets and the steps that load a frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apps.driving.models.own import OwnConfiguration
from apps.driving.models.own_camera import OwnCamera
from shared.errors import InvalidInputError

_UNSUPPORTED_DATA_SETS = {"LyftDataset": "Lyft's", "WaymoDataset": "Waymo's"}
_LOADERS = ("test_dataloader", "val_dataloader", "train_dataloader")


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedConfiguration:
    """A parsed configuration, and notes on what was ``read`` from it and what was ``assumed``."""

    own: OwnConfiguration | OwnCamera
    read: tuple[str, ...]
    assumed: tuple[str, ...]


def model_settings(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The settings of the network; ``name`` is the file's name for error messages.

    Raises InvalidInputError if the configuration is not resolved, or has an older layout.
    """
    if settings.get("_base_"):
        raise InvalidInputError(
            f"the configuration in {name} derives from others (_base_), which are not read; give the resolved one that "
            "mmengine writes into work_dirs"
        )
    if "data" in settings and not any(loader in settings for loader in _LOADERS):
        raise older_layout_error(name)
    model = settings.get("model")
    if not isinstance(model, Mapping):
        raise InvalidInputError(
            f"the configuration in {name} does not assign model = dict(...); give the resolved one that mmengine "
            "writes into work_dirs"
        )
    return model


def older_layout_error(name: str) -> InvalidInputError:
    """The error for a configuration in the layout of mmcv's runners."""
    return InvalidInputError(
        f"the configuration in {name} has the layout of mmdet3d before 1.1 (data = dict(...)), which is not supported; "
        "rewrite it for a later mmdet3d, and give the resolved file that mmengine writes for it, then the checkpoint"
    )


def class_names(
    trained_names: Sequence[str] | None, dataset: Mapping[str, Any], settings: Mapping[str, Any], name: str
) -> tuple[str, ...]:
    """The class names in label order: those in the checkpoint, else those of the data set or the configuration."""
    metainfo = dataset.get("metainfo")
    dataset_names = metainfo.get("classes") if isinstance(metainfo, Mapping) else None
    for names in (trained_names, dataset_names, settings.get("class_names")):
        if isinstance(names, Sequence) and names and all(isinstance(item, str) for item in names):
            return tuple([names] if isinstance(names, str) else names)
    raise InvalidInputError(f"neither {name} (meta, dataset_meta, classes) nor the configuration lists the classes")


def dataset_settings(settings: Mapping[str, Any], name: str, loaders: Sequence[str] = _LOADERS) -> Mapping[str, Any]:
    """The settings of the first loader's data set, without its wrappers (``RepeatDataset``, ``ConcatDataset``).

    By default the test data set comes first. Raises InvalidInputError for a data set that no reader here supports.
    """
    for loader in loaders:
        dataset = settings.get(loader)
        dataset = dataset.get("dataset") if isinstance(dataset, Mapping) else None
        while isinstance(dataset, Mapping):
            inner = dataset.get("dataset") or dataset.get("datasets")
            if not inner:
                kind = type_name(dataset)
                if kind in _UNSUPPORTED_DATA_SETS:
                    raise InvalidInputError(
                        f"{name} needs {_UNSUPPORTED_DATA_SETS[kind]} frames, which no reader here provides"
                    )
                return dataset
            dataset = inner[0] if isinstance(inner, list) else inner
    return {}


def all_steps(pipeline: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of a pipeline, including nested ones."""
    for step in pipeline if isinstance(pipeline, list) else []:
        if isinstance(step, Mapping):
            yield step
            yield from all_steps(step.get("transforms"))


def type_name(part: Mapping[str, Any]) -> str:
    """The type of a step or a data set, without its module."""
    return str(part.get("type", "")).rpartition(".")[2]


def find_step(steps: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any] | None:
    """The first step of type ``name``, or None."""
    return next((step for step in steps if type_name(step) == name), None)
