"""What is trained and scored on, one file a data set."""

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
"""By the name that ``--data`` takes."""


def training_volumes(data: Any, input: object, most: int) -> Iterator[CTVolume]:
    """The scans that one of the data sets has to learn from, at most ``most``, one at a time, whatever the input."""
    return (scan.volume for scan in data.training_scans(most))
