"""A folder of the user's CTs with a table of marks: one row per nodule, with its position and diameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from apps.medical.adapters.images import image_suffix
from apps.medical.adapters.members import first_few
from apps.medical.datasets.datalist import read_datalist
from apps.medical.datasets.delimited import read_columns
from apps.medical.datasets.scan_data import ScanData
from apps.medical.datasets.scan_files import Coordinates, Mark, ScanFile, find_scans
from apps.medical.datasets.splits import Split, files_digest, split_patients
from apps.medical.types import NODULE, ChestInput
from shared.errors import InvalidInputError

_TRAINING_WORDS, _VALIDATION_WORDS = ("train", "training"), ("validation", "valid", "val", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class Marks(ScanData):
    """CTs of your own with a table of marks.

    CTs below ``root`` (DICOM series, NIfTI, NRRD, MetaImage, zips) and the table ``marks`` (CSV, or MONAI data list).

    marks              path relative to ``root`` or to the working directory; a .json file is a MONAI data list
    scan_column        the scan: a path below ``root``, a file name with or without its suffix, a folder name, or a
                       SeriesInstanceUID
    x_column, y_column, z_column, diameter_column   centre, and diameter in mm
    coordinates        lps: mm as in DICOM; ras: mm as in NIfTI; voxel: indices i, j, k from 0, as stored
    class_column       the class of a nodule; by default all nodules have the same class
    patient_column     keeps scans of one patient together; by default DICOM's PatientID, or the scan itself
    split_column       train or validation; by default patients are drawn by ``seed``
    validation_share   fraction of the patients for validation, if there is no ``split_column``

    A scan without a row has no nodule. A row whose scan is missing is an error. With a data list only the listed images
    are used, found by path or name, and its split is kept; ``class_column`` may be ``label``.
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
        """If ``class_column`` is set, uses the classes in the table, sorted by name, instead of the default class."""
        if self.class_column is None:
            return input
        return replace(input, classes=tuple(sorted({row["class"] for _, row in self._rows() if "class" in row})))

    def fingerprint(self) -> dict[str, Any]:
        return {
            "description": "CTs with a table of marks",
            "synthetic": False,
            **self.split().counts(),
            "annotations_sha256": files_digest([self._table_file()]),
        }

    def split(self) -> Split:
        """The training and validation scans with their marks."""
        if not 0 < self.validation_share < 1:
            raise InvalidInputError(f"data.validation_share is {self.validation_share}; expected between 0 and 1")
        scans_by_name = find_scans(self.root)
        marks: dict[ScanFile, list[Mark]] = {scan: [] for scan in scans_by_name.values()}
        patients: dict[ScanFile, str] = {}
        parts: dict[ScanFile, str] = {}
        listed: dict[ScanFile, str] = {}
        unknown = []
        for number, row in self._rows():
            names = self._possible_names(row["scan"])
            scan = next((scans_by_name[name] for name in names if name in scans_by_name), None)
            if scan is None:
                unknown.append(f"{row['scan']!r} ({self._row_name(number)})")
                continue
            if self._is_datalist() and listed.setdefault(scan, row["scan"]) != row["scan"]:
                raise InvalidInputError(
                    f"{self.marks.name} lists {listed[scan]} and {row['scan']}, but {self.root} holds one file for both"
                )
            if "x" in row:
                marks[scan].append(self._parse_mark(number, row))
            for column, values in (("patient", patients), ("split", parts)):
                if column in row and values.setdefault(scan, row[column]) != row[column]:
                    raise InvalidInputError(
                        f"{self.marks.name}, {self._row_name(number)}: the {column} differs from an earlier one of the "
                        "same scan"
                    )
        if unknown:
            raise InvalidInputError(
                f"{self.marks.name} marks scans whose names match no file in {self.root}, or more than one: "
                f"{first_few(unknown)}"
            )
        scans = [
            replace(
                scan, nodules=tuple(nodules), coordinates=self.coordinates, patient=patients.get(scan, scan.patient)
            )
            for scan, nodules in sorted(marks.items(), key=lambda item: (item[0].path, item[0].name))
            if not self._is_datalist() or scan in listed
        ]
        if not parts:
            return split_patients(scans, self.validation_share, self.seed, self.root)
        return self._split_by_column(scans, {_scan_key(scan): part for scan, part in parts.items()})

    def _split_by_column(self, scans: list[ScanFile], parts: Mapping[tuple[Path, str | None], str]) -> Split:
        """Splits the scans by ``split_column``; scans without a row are for training."""
        training: list[ScanFile] = []
        validation: list[ScanFile] = []
        for scan in scans:
            stated = parts.get(_scan_key(scan), _TRAINING_WORDS[0]).lower()
            if stated not in (*_TRAINING_WORDS, *_VALIDATION_WORDS):
                raise InvalidInputError(
                    f"{self.marks.name} has {stated!r} in column {self.split_column}; expected train or validation"
                )
            (training if stated in _TRAINING_WORDS else validation).append(scan)
        return Split(tuple(training), tuple(validation))

    def _parse_mark(self, number: int, row: Mapping[str, str]) -> Mark:
        try:
            x, y, z, diameter_mm = (float(row[name]) for name in ("x", "y", "z", "diameter"))
        except ValueError:
            x, y, z, diameter_mm = (float("nan"),) * 4
        if not (abs(x) + abs(y) + abs(z) < float("inf") and 0 < diameter_mm < float("inf")):
            raise InvalidInputError(
                f"{self.marks.name}, {self._row_name(number)}: "
                f"{', '.join(row[name] for name in ('x', 'y', 'z', 'diameter'))} are not a position and a diameter "
                "above 0 mm"
            )
        return Mark(centre=(x, y, z), diameter_mm=diameter_mm, label=row.get("class", NODULE))

    def _rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        """The number and the cells of each row; the keys are the same whatever the table's columns are called."""
        if not self._is_datalist():
            yield from read_columns(self._table_file(), self._columns())
            return
        if self.class_column not in (None, "label"):
            raise InvalidInputError(f"a data list has its classes in label, not in {self.class_column}")
        for number, row in read_datalist(self._table_file()):
            yield number, row if self.class_column else {key: cell for key, cell in row.items() if key != "class"}

    def _row_name(self, number: int) -> str:
        """The name of a row in errors: a table has rows, a data list entries."""
        return f"{'entry' if self._is_datalist() else 'row'} {number}"

    def _is_datalist(self) -> bool:
        return self.marks.suffix.lower() == ".json"

    def _possible_names(self, scan: str) -> tuple[str, ...]:
        """Names under which a scan may be found below ``root``: a data list may refer to another folder or format."""
        if not self._is_datalist():
            return (scan,)
        path = Path(scan)
        return scan, path.name, path.name.removesuffix(image_suffix(path) or "")

    def _columns(self) -> dict[str, str]:
        names = ("scan", "x", "y", "z", "diameter", "class", "patient", "split")
        columns = {name: getattr(self, f"{name}_column") for name in names}
        return {name: column for name, column in columns.items() if column is not None}

    def _table_file(self) -> Path:
        if self.marks.suffix.lower() == ".xml":
            raise InvalidInputError(
                f"{self.marks} is not a table; use --data lidc to read LIDC-IDRI and its readers' XML"
            )
        file = next((path for path in (self.root / self.marks, self.marks) if path.is_file()), None)
        if file is None:
            raise InvalidInputError(
                f"{self.marks} is neither in {self.root} nor in the working directory; give its path with --data.marks"
            )
        return file


def _scan_key(scan: ScanFile) -> tuple[Path, str | None]:
    """What identifies a scan, independent of its marks."""
    return scan.path, scan.series
