"""What is trained and scored on, one file a data set."""

from __future__ import annotations

from collections.abc import Mapping

from apps.medical.datasets.luna16 import Luna16
from apps.medical.datasets.marks import Marks
from apps.medical.datasets.synthetic import Synthetic
from shared.recipe import DataConfig

DATA_SETS: Mapping[str, type[DataConfig]] = {"luna16": Luna16, "marks": Marks, "synthetic": Synthetic}
"""By the name that ``--data`` takes."""
