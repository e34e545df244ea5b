"""What the data sets of real scans have in common: a split of scans, its patches, its facts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.medical.datasets.scan_files import ScanFile
from apps.medical.types import AnnotatedScan, ChestInput
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from apps.medical.datasets.packed_scans import PackedScan, ScanPatches


@dataclass(frozen=True, slots=True)
class Split:
    """The scans to learn from and those to be scored on."""

    training: tuple[ScanFile, ...]
    validation: tuple[ScanFile, ...]

    def train(self, input: ChestInput, length: int | None) -> ScanPatches:
        """``length`` patches an epoch; None is two for each nodule. Refuses scans without a nodule to learn."""
        return _patches(self.training, input, length, "training")

    def validate(self, input: ChestInput, length: int | None) -> ScanPatches:
        """As ``train``, of the scans that are not learnt from."""
        return _patches(self.validation, input, length, "validation")

    def validation_scans(self) -> Iterator[AnnotatedScan]:
        """The validation scans whole, read one at a time."""
        if not self.validation:
            raise InvalidInputError("there is no validation scan; see the facts of the data set for its split")
        return (scan.read_annotated() for scan in self.validation)

    def training_scans(self, most: int) -> Iterator[AnnotatedScan]:
        """The training scans whole, read one at a time: ``most`` of them, evenly chosen, where there are more."""
        chosen = np.unique(np.linspace(0, len(self.training) - 1, min(most, len(self.training))).round().astype(int))
        return (self.training[number].read_annotated() for number in chosen.tolist())

    def facts(self, input: ChestInput) -> Mapping[str, Any]:
        """Counts, ranges, and what is doubtful. Packs the scans first where that has not been done."""
        from apps.medical.datasets.packed_scans import open_scans

        parts = [open_scans(scans, input) for scans in (self.training, self.validation)]
        both = [*parts[0], *parts[1]]
        diameters = [value for scan in both for value in scan.diameters_mm if value > 0]
        shared = {scan.patient for scan in self.training} & {scan.patient for scan in self.validation}
        facts = {
            "scans": _two(parts, len),
            "nodules": _two(parts, lambda scans: sum(len(scan.diameters_mm) for scan in scans)),
            "classes": _classes([mark.label for scan in (*self.training, *self.validation) for mark in scan.nodules]),
            "diameters": _range(diameters, "mm"),
            "pixel spacing": _range([scan.spacing_mm[0] for scan in both], "mm"),
            "slice spacing": _range([scan.spacing_mm[2] for scan in both], "mm"),
            "scans without marks": _two(parts, lambda scans: sum(not scan.diameters_mm for scan in scans)),
            "scans without lungs": _two(parts, lambda scans: sum(not scan.lungs for scan in scans)),
            "marks outside their scan": _two(parts, lambda scans: sum(scan.outside for scan in scans)),
            "marks away from the lungs": _two(parts, lambda scans: sum(scan.away_from_lungs for scan in scans)),
            "patients in both parts": str(len(shared)),
        }
        return facts


def _two(parts: Sequence[list[PackedScan]], count: Any) -> str:
    return f"{count(parts[0])} to learn from, {count(parts[1])} to validate on"


def _classes(labels: Sequence[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(Counter(labels).items())) or "none"


def _range(values: Sequence[float], unit: str) -> str:
    if not values:
        return "none"
    return f"{min(values):.3g} to {max(values):.3g} {unit}, median {float(np.median(values)):.3g}"


def _patches(scans: tuple[ScanFile, ...], input: ChestInput, length: int | None, part: str) -> ScanPatches:
    from apps.medical.datasets.packed_scans import ScanPatches, open_scans

    if not scans:
        raise InvalidInputError(f"there is no {part} scan; choose another split, or add scans")
    packed = open_scans(scans, input)
    nodules = sum(len(scan.boxes) for scan in packed)
    if not nodules and part == "training":
        outside = sum(scan.outside + scan.away_from_lungs for scan in packed)
        raise InvalidInputError(
            f"none of the {len(packed)} training scans has a nodule to learn from; {outside} marks lie outside of "
            "their scan or away from its lungs (are they in LPS mm?)"
        )
    return ScanPatches(packed, input, length or max(2 * nodules, len(packed)))


def draw_patients(scans: Sequence[ScanFile], validation_share: float, seed: int, root: Path) -> Split:
    """Patients in an order that follows from the seed and their names alone; the first validate."""
    if not 0 < validation_share < 1:
        raise InvalidInputError(f"data.validation_share is {validation_share}; expected between 0 and 1")
    patients = sorted({scan.patient for scan in scans}, key=lambda name: _digest(f"{seed}/{name}"))
    if len(patients) < 2:
        raise InvalidInputError(f"{root} holds CTs of one patient alone; a split needs two")
    count = min(max(round(validation_share * len(patients)), 1), len(patients) - 1)
    chosen = set(patients[:count])
    training = tuple(scan for scan in scans if scan.patient not in chosen)
    return Split(training, tuple(scan for scan in scans if scan.patient in chosen))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of(files: Sequence[Path]) -> str:
    """SHA-256 over the files' contents, in their order."""
    whole = hashlib.sha256()
    for file in files:
        whole.update(hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()
