"""Training data of the second stage on real scans: a detector's candidates in LUNA16, LIDC-IDRI or marked CTs.

The recipe ``candidates`` uses these data sets in place of those with the same names, whose patches are for a detector.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.medical.datasets.hard_candidates import (
    VERSION,
    PackedCandidates,
    open_candidates,
    open_detector_artifact,
    pack_candidates,
)
from apps.medical.datasets.lidc import Lidc
from apps.medical.datasets.luna16 import Luna16
from apps.medical.datasets.marks import Marks
from apps.medical.datasets.packed_scans import pack_name
from apps.medical.datasets.scan_data import ScanData
from apps.medical.datasets.scan_files import Mark, ScanFile
from apps.medical.types import ChestInput
from shared.data.build_cache import get_or_build
from shared.deploy.programs.store import weights_digest
from shared.errors import InvalidInputError
from shared.progress_bar import progress_bar
from shared.recipe import DataConfig

if TYPE_CHECKING:
    from shared.data.dataset import Dataset
    from shared.deploy.artifact import Artifact

CROP_SEED = 3020
SCANS_VERSION = 2
"""Counts changes of the packed candidates that phantoms, which have no excluded findings, do not share."""


@dataclass(frozen=True, kw_only=True)
class ScanCandidates(ScanData):
    """The candidates of a detector in annotated scans; ``train_patches`` and ``validation_patches`` have no effect.

    detector   the folder of its artifact; by default the shipped detector
    per_scan   the maximum number of candidates that are used of a scan, those with the highest scores
    size       the patch size along x, y, z in voxels; equals that of the model
    """

    detector: Path | None = None
    per_scan: int = 80
    size: tuple[int, int, int] = (32, 32, 16)

    def train(self, input: ChestInput) -> Dataset:
        candidates = self._open_pack(self.split().training, "training")
        if not candidates.labels.any():
            raise InvalidInputError(
                f"none of the {len(candidates)} candidates of {self.artifact().path} in the training scans is on a "
                "nodule: a second stage cannot be trained on them; train the detector longer, or check the coordinates "
                "of the marks"
            )
        return candidates

    def validation(self, input: ChestInput) -> Dataset:
        return self._open_pack(self.split().validation, "validation")

    def fit_input(self, input: ChestInput) -> ChestInput:
        """The input as it is: a second stage does not distinguish classes."""
        return input

    def fingerprint(self) -> dict[str, Any]:
        scans = super().fingerprint()  # type: ignore[safe-super]
        return {
            **scans,
            "description": f"{scans['description']}; candidates of the detector",
            "detector": weights_digest(self.artifact()),
        }

    def facts(self, input: ChestInput) -> Mapping[str, Any]:
        """The number of scans and candidates, and how many of the candidates are on a nodule."""
        split, parts = self.split(), {}
        for name, scans in (("training", split.training), ("validation", split.validation)):
            candidates = self._open_pack(scans, name)
            parts[f"{name} candidates"] = (
                f"{len(candidates)} in {len(scans)} scans, {int(candidates.labels.sum())} of them on nodules"
            )
        return {"detector": str(self.artifact().path), **parts}

    def artifact(self) -> Artifact:
        """The artifact of the detector."""
        return open_detector_artifact(self.detector)

    def _open_pack(self, scans: Sequence[ScanFile], part: str) -> PackedCandidates:
        if not scans:
            raise InvalidInputError(f"there is no {part} scan; choose another split, or add scans")
        detector = self.artifact()
        described = [
            [pack_name(scan, ChestInput()), scan.coordinates, *map(_as_list, (scan.nodules, scan.excluded))]
            for scan in scans
        ]
        settings = [VERSION, SCANS_VERSION, weights_digest(detector), CROP_SEED, self.per_scan, self.size, described]
        name = f"marks-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]}"

        def build(folder: Path) -> None:
            annotated = progress_bar((scan.read_annotated() for scan in scans), len(scans), f"searching {part} scans")
            pack_candidates(detector, annotated, self.per_scan, self.size, CROP_SEED, folder)

        return open_candidates(get_or_build(name, build))


def _as_list(marks: Sequence[Mark]) -> list[dict[str, Any]]:
    return [asdict(mark) for mark in marks]


@dataclass(frozen=True, kw_only=True)
class Luna16Candidates(ScanCandidates, Luna16):
    """A detector's candidates in the scans of LUNA16, or of `trivium reviews`.

    The scans' settings are those of the data set luna16. ``detector`` is the folder of the detector's artifact, by
    default the shipped one; at most ``per_scan`` candidates of a scan are used; ``size`` is the model's patch size.
    """


@dataclass(frozen=True, kw_only=True)
class LidcCandidates(ScanCandidates, Lidc):
    """A detector's candidates in the scans of LIDC-IDRI.

    The scans' settings are those of the data set lidc. ``detector`` is the folder of the detector's artifact, by
    default the shipped one; at most ``per_scan`` candidates of a scan are used; ``size`` is the model's patch size.
    """


@dataclass(frozen=True, kw_only=True)
class MarksCandidates(ScanCandidates, Marks):
    """A detector's candidates in CTs of your own with a table of marks.

    The scans' settings are those of the data set marks. ``detector`` is the folder of the detector's artifact, by
    default the shipped one; at most ``per_scan`` candidates of a scan are used; ``size`` is the model's patch size.
    """


CANDIDATE_DATA_SETS: Mapping[str, type[DataConfig]] = {
    "luna16": Luna16Candidates,
    "lidc": LidcCandidates,
    "marks": MarksCandidates,
}
"""The data sets of the recipe ``candidates`` by their name in ``--data``."""
