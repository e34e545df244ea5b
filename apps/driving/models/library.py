"""Imports mmdet3d with the stand-in for mmcv's compiled operators, and reads its shipped configurations."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import warnings
from functools import cache
from typing import Any

from torch import nn


@cache
def load() -> None:
    """Imports mmdet3d's models. Every function that uses mmdet3d calls this first."""
    from apps.driving.models.ops.extension import install

    install()
    # mmdet3d's stack warns about its own calls at every step.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"mmdet|mmcv|mmengine")
    warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)
    with warnings.catch_warnings():
        # mmcv announces moved classes, and mmdet3d's dependencies their own deprecations.
        warnings.simplefilter("ignore")
        import mmdet3d.models  # noqa: F401


def version() -> str:
    """mmdet3d's version."""
    return importlib.metadata.version("mmdet3d")


def shipped_config(path: str) -> dict[str, Any]:
    """The ``model`` settings of a shipped configuration; ``path`` is relative to mmdet3d's ``configs``."""
    load()
    from mmengine.config import Config

    with importlib.resources.as_file(importlib.resources.files("mmdet3d") / ".mim" / "configs" / path) as file:
        model: dict[str, Any] = Config.fromfile(file).model.to_dict()
    return model


def build(settings: dict[str, Any]) -> nn.Module:
    """mmdet3d's detector for ``settings``, initialised by mmdet3d with torch's global random generator."""
    load()
    from mmdet3d.registry import MODELS
    from mmengine.config import ConfigDict
    from mmengine.logging import MMLogger
    from mmengine.registry import DefaultScope

    MMLogger.get_current_instance().setLevel("ERROR")
    with warnings.catch_warnings(), DefaultScope.overwrite_default_scope("mmdet3d"):
        warnings.simplefilter("ignore")
        model: Any = MODELS.build(ConfigDict(settings))
        model.init_weights()
    detector: nn.Module = model
    return detector


def dense_parts(detector: nn.Module) -> tuple[nn.Module, ...]:
    """The convolutional parts of a detector, which torch can compile; voxelisation, targets and boxes are no graph."""
    parts = dict(detector.named_children())
    return tuple(part for name, part in parts.items() if name.endswith(("backbone", "neck", "bbox_head")))
