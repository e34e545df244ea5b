"""What every data set of annotated scans does: patches of its two parts to learn from, whole scans to score on."""

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
    """Annotated scans. ``train_patches`` and ``validation_patches`` are drawn in an epoch; by default two for each
    nodule.
    """

    train_patches: int | None = None
    validation_patches: int | None = None

    @abstractmethod
    def split(self) -> Split:
        """The scans with their marks, to learn from and to validate on."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]: ...

    def train(self, input: ChestInput) -> Dataset:
        return self.split().train(input, self.train_patches)

    def validation(self, input: ChestInput) -> Dataset:
        return self.split().validate(input, self.validation_patches)

    def validation_scans(self) -> Iterator[AnnotatedScan]:
        """The scans that validate, whole."""
        return self.split().validation_scans()

    def training_scans(self, most: int) -> Iterator[AnnotatedScan]:
        """The scans that are learnt from, whole, evenly chosen, at most ``most``."""
        return self.split().training_scans(most)

    def facts(self, input: ChestInput) -> Mapping[str, Any]:
        """What is printed before training."""
        return self.split().facts(input)
