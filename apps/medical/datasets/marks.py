"""A folder of one's own CTs with a table of marks: one row a nodule, with its place and its diameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from apps.medical.adapters.images import suffix
from apps.medical.adapters.members import first_few
from apps.medical.datasets.datalist import read_datalist
from apps.medical.datasets.delimited import read_columns
from apps.medical.datasets.scan_data import ScanData
from apps.medical.datasets.scan_files import Coordinates, Mark, ScanFile, find_scans
from apps.medical.datasets.splits import Split, digest_of, draw_patients
from apps.medical.types import NODULE, ChestInput
from shared.errors import InvalidInputError

_TRAINING, _VALIDATION = ("train", "training"), ("validation", "valid", "val", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class Marks(ScanData):
    """CTs of your own with a table of marks.

    CTs below ``root`` (DICOM series, NIfTI, NRRD, MetaImage, zips) and the table ``marks`` (CSV, or MONAI's data list).

    marks              relative to ``root``, or where the command runs; a .json file is a data list of MONAI
    scan_column        which scan: a path below ``root``, a file's name with or without its ending, a folder's, or a
                       SeriesInstanceUID
    x_column, y_column, z_column, diameter_column   centre, and diameter in mm
    coordinates        lps: mm as in DICOM; ras: mm as in NIfTI; voxel: indices i, j, k from 0, as stored
    class_column       tells kinds of nodules apart; by default all are of one class
    patient_column     keeps scans of one patient together; by default DICOM's PatientID, or the scan itself
    split_column       train or validation; by default patients are drawn by ``seed``
    validation_share   of the patients, where there is no ``split_column``

    A scan without a row has no nodule. A row whose scan is not there is refused. Of a data list, whose split is kept,
    the images that it lists are taken alone, by their path or by their name; ``class_column`` may be ``label``.
    """

    root: Path
    marks: Path
    scan_column: str = "scan"
    x_column: str = "x"
    y_column: str = "y"
    z_column: str = "z"
    diameter_column: str = "diameter_mm"
    coordinates: Coordinates = "lps"
    class_column: str | None = None
    patient_column: str | None = None
    split_column: str | None = None
    validation_share: float = 0.2
    seed: int = 0

    def fit_input(self, input: ChestInput) -> ChestInput:
        """The table's classes, in the order of their names, in place of the one that is there by default."""
        if self.class_column is None:
            return input
        return replace(input, classes=tuple(sorted({row["class"] for _, row in self._rows() if "class" in row})))

    def fingerprint(self) -> dict[str, Any]:
        split = self.split()
        return {
            "description": "CTs of one's own with a table of marks",
            "synthetic": False,
            "scans": [len(split.training), len(split.validation)],
            "nodules": [sum(len(scan.nodules) for scan in part) for part in (split.training, split.validation)],
            "annotations_sha256": digest_of([self._table()]),
        }

    def split(self) -> Split:
        """The scans with their marks, to learn from and to validate on."""
        if not 0 < self.validation_share < 1:
            raise InvalidInputError(f"data.validation_share is {self.validation_share}; expected between 0 and 1")
        named = find_scans(self.root)
        marks: dict[ScanFile, list[Mark]] = {scan: [] for scan in named.values()}
        patients: dict[ScanFile, str] = {}
        parts: dict[ScanFile, str] = {}
        listed: dict[ScanFile, str] = {}
        unknown = []
        for number, row in self._rows():
            scan = next((named[name] for name in self._names(row["scan"]) if name in named), None)
            if scan is None:
                unknown.append(f"{row['scan']!r} (row {number})")
                continue
            if self._is_list() and listed.setdefault(scan, row["scan"]) != row["scan"]:
                raise InvalidInputError(
                    f"{self.marks.name} lists {listed[scan]} and {row['scan']}, and {self.root} holds one file for both"
                )
            if "x" in row:
                marks[scan].append(self._mark(number, row))
            for column, known in (("patient", patients), ("split", parts)):
                if column in row and known.setdefault(scan, row[column]) != row[column]:
                    raise InvalidInputError(f"{self.marks.name}, row {number}: its scan has another {column} above")
        if unknown:
            raise InvalidInputError(
                f"{self.marks.name} marks scans that {self.root} does not hold under that name, or holds twice: "
                f"{first_few(unknown)}"
            )
        scans = [
            replace(scan, nodules=tuple(found), coordinates=self.coordinates, patient=patients.get(scan, scan.patient))
            for scan, found in sorted(marks.items(), key=lambda item: (item[0].path, item[0].name))
            if not self._is_list() or scan in listed
        ]
        if not parts:
            return draw_patients(scans, self.validation_share, self.seed, self.root)
        return self._as_stated(scans, {_key(scan): part for scan, part in parts.items()})

    def _as_stated(self, scans: list[ScanFile], parts: Mapping[tuple[Path, str | None], str]) -> Split:
        """By ``split_column``; scans without a row are learnt from."""
        training: list[ScanFile] = []
        validation: list[ScanFile] = []
        for scan in scans:
            stated = parts.get(_key(scan), _TRAINING[0]).lower()
            if stated not in (*_TRAINING, *_VALIDATION):
                raise InvalidInputError(
                    f"{self.marks.name} says {stated!r} in {self.split_column}; expected train or validation"
                )
            (training if stated in _TRAINING else validation).append(scan)
        return Split(tuple(training), tuple(validation))

    def _mark(self, number: int, row: Mapping[str, str]) -> Mark:
        try:
            x, y, z, diameter_mm = (float(row[name]) for name in ("x", "y", "z", "diameter"))
        except ValueError:
            x, y, z, diameter_mm = (float("nan"),) * 4
        if not (abs(x) + abs(y) + abs(z) < float("inf") and 0 < diameter_mm < float("inf")):
            raise InvalidInputError(
                f"{self.marks.name}, row {number}: {', '.join(row[name] for name in ('x', 'y', 'z', 'diameter'))} are "
                "not a place and a diameter above 0 mm"
            )
        return Mark(centre=(x, y, z), diameter_mm=diameter_mm, label=row.get("class", NODULE))

    def _rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        """The rows of the table, by what they hold rather than by its columns."""
        if not self._is_list():
            yield from read_columns(self._table(), self._columns())
            return
        if self.class_column not in (None, "label"):
            raise InvalidInputError(f"a data list has its classes in label, not in {self.class_column}")
        for number, row in read_datalist(self._table()):
            yield number, row if self.class_column else {key: cell for key, cell in row.items() if key != "class"}

    def _is_list(self) -> bool:
        return self.marks.suffix.lower() == ".json"

    def _names(self, scan: str) -> tuple[str, ...]:
        """What a scan may be called below ``root``. A data list may have been made for another folder or format."""
        if not self._is_list():
            return (scan,)
        path = Path(scan)
        return scan, path.name, path.name.removesuffix(suffix(path) or "")

    def _columns(self) -> dict[str, str]:
        names = ("scan", "x", "y", "z", "diameter", "class", "patient", "split")
        columns = {name: getattr(self, f"{name}_column") for name in names}
        return {name: column for name, column in columns.items() if column is not None}

    def _table(self) -> Path:
        if self.marks.suffix.lower() == ".xml":
            raise InvalidInputError(
                f"{self.marks} is no table; LIDC-IDRI and its readers' XML are read with --data lidc"
            )
        found = next((path for path in (self.root / self.marks, self.marks) if path.is_file()), None)
        if found is None:
            raise InvalidInputError(f"{self.marks} is neither in {self.root} nor here; name it with --data.marks")
        return found


def _key(scan: ScanFile) -> tuple[Path, str | None]:
    """What tells a scan from others whatever is known of it."""
    return scan.path, scan.series
