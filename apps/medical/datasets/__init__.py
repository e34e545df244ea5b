"""Data sets for training and evaluation, one file each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from apps.medical.datasets.lidc import Lidc
from apps.medical.datasets.luna16 import Luna16
from apps.medical.datasets.marks import Marks
from apps.medical.datasets.synthetic import Synthetic
from apps.medical.types import CTVolume
from shared.recipe import DataConfig

DATA_SETS: Mapping[str, type[DataConfig]] = {
    "luna16": Luna16,
    "lidc": Lidc,
    "marks": Marks,
    "synthetic": Synthetic,
}
"""The data sets by their name in ``--data``."""


def training_volumes(data: Any, input: object, max_scans: int) -> Iterator[CTVolume]:
    """At most ``max_scans`` training scans of a data set, one at a time; ``input`` is not used."""
    return (scan.volume for scan in data.training_scans(max_scans))
