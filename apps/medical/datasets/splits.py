"""A split of real scans into training and validation, with its patches, whole scans and figures."""

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
from shared.data.order import evenly_spaced
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from apps.medical.datasets.packed_scans import PackedScan, ScanPatches


@dataclass(frozen=True, slots=True)
class Split:
    """The training and the validation scans."""

    training: tuple[ScanFile, ...]
    validation: tuple[ScanFile, ...]

    def counts(self) -> dict[str, list[int]]:
        """The numbers of scans and of nodules, each for training and for validation, for a fingerprint."""
        parts = (self.training, self.validation)
        return {
            "scans": [len(part) for part in parts],
            "nodules": [sum(len(scan.nodules) for scan in part) for part in parts],
        }

    def train(self, input: ChestInput, length: int | None) -> ScanPatches:
        """A data set of ``length`` training patches per epoch; None is two per nodule, or one per scan if that is more.

        Raises InvalidInputError if no training scan has a nodule.
        """
        return _patches(self.training, input, length, "training")

    def validate(self, input: ChestInput, length: int | None) -> ScanPatches:
        """A data set of ``length`` validation patches; None is two per nodule, or one per scan if that is more."""
        return _patches(self.validation, input, length, "validation")

    def validation_scans(self) -> Iterator[AnnotatedScan]:
        """The whole validation scans, read one at a time. Raises InvalidInputError if there are none."""
        if not self.validation:
            raise InvalidInputError("there is no validation scan; see the facts of the data set for its split")
        return (scan.read_annotated() for scan in self.validation)

    def training_scans(self, max_scans: int) -> Iterator[AnnotatedScan]:
        """At most ``max_scans`` whole training scans, evenly chosen, read one at a time."""
        chosen = evenly_spaced(len(self.training), max_scans)
        return (self.training[number].read_annotated() for number in chosen)

    def facts(self, input: ChestInput) -> Mapping[str, Any]:
        """Counts and ranges of the data, and doubtful marks. Packs the scans first if they are not packed yet."""
        from apps.medical.datasets.packed_scans import open_scans

        parts = [open_scans(scans, input) for scans in (self.training, self.validation)]
        packed = [*parts[0], *parts[1]]
        diameters = [diameter for scan in packed for diameter in scan.diameters_mm if diameter > 0]
        shared = {scan.patient for scan in self.training} & {scan.patient for scan in self.validation}
        facts = {
            "scans": _count_parts(parts, len),
            "nodules": _count_parts(parts, lambda scans: sum(len(scan.diameters_mm) for scan in scans)),
            "classes": _classes([mark.label for scan in (*self.training, *self.validation) for mark in scan.nodules]),
            "diameters": _range(diameters, "mm"),
            "pixel spacing": _range([scan.spacing_mm[0] for scan in packed], "mm"),
            "slice spacing": _range([scan.spacing_mm[2] for scan in packed], "mm"),
            "scans without marks": _count_parts(parts, lambda scans: sum(not scan.diameters_mm for scan in scans)),
            "scans without lungs": _count_parts(parts, lambda scans: sum(not scan.lungs for scan in scans)),
            "marks outside their scan": _count_parts(parts, lambda scans: sum(scan.outside for scan in scans)),
            "marks away from the lungs": _count_parts(parts, lambda scans: sum(scan.away_from_lungs for scan in scans)),
            "patients in both parts": str(len(shared)),
        }
        return facts


def _count_parts(parts: Sequence[list[PackedScan]], count: Any) -> str:
    return f"{count(parts[0])} for training, {count(parts[1])} for validation"


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
            f"none of the {len(packed)} training scans has a nodule within its volume and near its lungs; {outside} "
            "marks are outside their scan or away from its lungs (are they in LPS mm?)"
        )
    return ScanPatches(packed, input, length or max(2 * nodules, len(packed)))


def split_patients(scans: Sequence[ScanFile], validation_share: float, seed: int, root: Path) -> Split:
    """Splits scans by patient: the first ``validation_share`` of the patients, in an order drawn by ``seed``, validate.

    The order depends only on the seed and the patients' names. Raises InvalidInputError, naming ``root``, if there are
    fewer than two patients.
    """
    if not 0 < validation_share < 1:
        raise InvalidInputError(f"data.validation_share is {validation_share}; expected between 0 and 1")
    patients = sorted({scan.patient for scan in scans}, key=lambda name: _digest(f"{seed}/{name}"))
    if len(patients) < 2:
        raise InvalidInputError(f"{root} holds CTs of only one patient; a split needs at least two")
    count = min(max(round(validation_share * len(patients)), 1), len(patients) - 1)
    chosen = set(patients[:count])
    training = tuple(scan for scan in scans if scan.patient not in chosen)
    return Split(training, tuple(scan for scan in scans if scan.patient in chosen))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def files_digest(files: Sequence[Path]) -> str:
    """SHA-256 over the SHA-256 of each file, in order."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
