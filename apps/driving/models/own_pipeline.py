"""What a configuration that mmengine dumped says of its data: classes, data sets and the steps that read a frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apps.driving.models.own import OwnConfiguration
from apps.driving.models.own_camera import OwnCamera
from shared.errors import InvalidInputError

_WITHOUT_READER = {"LyftDataset": "Lyft's", "WaymoDataset": "Waymo's"}
_TESTED_ON = ("test_dataloader", "val_dataloader", "train_dataloader")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """A configuration, and in sentences what was ``read`` of it and what was ``assumed``."""

    own: OwnConfiguration | OwnCamera
    read: tuple[str, ...]
    assumed: tuple[str, ...]


def model_of(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The settings of the network; ``name`` is that of the file in refusals."""
    if settings.get("_base_"):
        raise InvalidInputError(
            f"the configuration in {name} derives from others (_base_), which are not read: give the resolved one that "
            "mmengine writes into work_dirs"
        )
    if "data" in settings and not any(loader in settings for loader in _TESTED_ON):
        raise older_layout(name)
    model = settings.get("model")
    if not isinstance(model, Mapping):
        raise InvalidInputError(
            f"the configuration in {name} assigns no model = dict(...): give the resolved one that mmengine writes "
            "into work_dirs"
        )
    return model


def older_layout(name: str) -> InvalidInputError:
    """What is said of a configuration in the layout that mmcv's runners wrote."""
    return InvalidInputError(
        f"the configuration in {name} is in the layout of mmdet3d before 1.1 (data = dict(...)), which is not read; "
        "write it anew for a later mmdet3d, and name the resolved one that mmengine writes of it before the checkpoint"
    )


def classes_of(
    trained: Sequence[str] | None, dataset: Mapping[str, Any], settings: Mapping[str, Any], name: str
) -> tuple[str, ...]:
    """The names of the classes in the order of the labels: the checkpoint's own, or those of its data."""
    metainfo = dataset.get("metainfo")
    named = metainfo.get("classes") if isinstance(metainfo, Mapping) else None
    for names in (trained, named, settings.get("class_names")):
        if isinstance(names, Sequence) and names and all(isinstance(one, str) for one in names):
            return tuple([names] if isinstance(names, str) else names)
    raise InvalidInputError(f"neither {name} (meta, dataset_meta, classes) nor the configuration names the classes")


def dataset_of(settings: Mapping[str, Any], name: str, loaders: Sequence[str] = _TESTED_ON) -> Mapping[str, Any]:
    """The settings of the data set of the first of ``loaders``, out of its wrappers (``RepeatDataset``,
    ``ConcatDataset``); by default that which is tested on. Refuses one of frames that no reader here gives."""
    for loader in loaders:
        found = settings.get(loader)
        found = found.get("dataset") if isinstance(found, Mapping) else None
        while isinstance(found, Mapping):
            inner = found.get("dataset") or found.get("datasets")
            if not inner:
                kind = type_of(found)
                if kind in _WITHOUT_READER:
                    raise InvalidInputError(f"{name} is for {_WITHOUT_READER[kind]} frames, which no reader here gives")
                return found
            found = inner[0] if isinstance(inner, list) else inner
    return {}


def steps_of(pipeline: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of a pipeline, with those within others."""
    for step in pipeline if isinstance(pipeline, list) else []:
        if isinstance(step, Mapping):
            yield step
            yield from steps_of(step.get("transforms"))


def type_of(part: Mapping[str, Any]) -> str:
    """The type of a step or a data set, without the module before it."""
    return str(part.get("type", "")).rpartition(".")[2]


def step_of(steps: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any] | None:
    """The first step of the type ``name``."""
    return next((step for step in steps if type_of(step) == name), None)
