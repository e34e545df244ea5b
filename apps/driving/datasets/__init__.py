"""The data sets for training and scoring detectors: one file per data set, and this table of their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared.recipe import DataConfig


def data_sets() -> Mapping[str, type[DataConfig]]:
    """The config class of each data set by its name for ``--data``. Does not import torch."""
    from apps.driving.datasets.argoverse2 import Argoverse2
    from apps.driving.datasets.cityscapes3d import Cityscapes3D
    from apps.driving.datasets.custom import Custom
    from apps.driving.datasets.kitti import Kitti
    from apps.driving.datasets.nuscenes import NuScenes
    from apps.driving.datasets.synthetic import Synthetic

    return {
        "kitti": Kitti,
        "nuscenes": NuScenes,
        "argoverse2": Argoverse2,
        "cityscapes3d": Cityscapes3D,
        "custom": Custom,
        "synthetic": Synthetic,
    }
