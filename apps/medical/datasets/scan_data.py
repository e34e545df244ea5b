"""The base class of data sets of annotated scans: patches for training and validation, whole scans for evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apps.medical.datasets.splits import Split
from apps.medical.types import AnnotatedScan, ChestInput

if TYPE_CHECKING:
    from shared.data.dataset import Dataset


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanData(ABC):
    """Annotated scans. ``train_patches`` and ``validation_patches`` are numbers of patches per epoch, by default two
    per nodule, or one per scan if that is more.
    """

    train_patches: int | None = None
    validation_patches: int | None = None

    @abstractmethod
    def split(self) -> Split:
        """The training and validation scans with their marks."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]: ...

    def train(self, input: ChestInput) -> Dataset:
        return self.split().train(input, self.train_patches)

    def validation(self, input: ChestInput) -> Dataset:
        return self.split().validate(input, self.validation_patches)

    def validation_scans(self) -> Iterator[AnnotatedScan]:
        """The whole validation scans, read one at a time."""
        return self.split().validation_scans()

    def training_scans(self, max_scans: int) -> Iterator[AnnotatedScan]:
        """At most ``max_scans`` whole training scans, evenly chosen, read one at a time."""
        return self.split().training_scans(max_scans)

    def facts(self, input: ChestInput) -> Mapping[str, Any]:
        """Figures of the data set that are printed before training."""
        return self.split().facts(input)
