"""LIDC-IDRI as it is downloaded: DICOM series, and the XML in which four readers marked each.

Armato et al., Medical Physics 38(2), 2011; The Cancer Imaging Archive, CC BY 3.0. Which marks are a nodule, and which
count neither way, is as in LUNA16, which is made of it (Setio et al., Medical Image Analysis 42, 2017).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from apps.medical.datasets.lidc_collection import Collection, ReadSeries, read_collection
from apps.medical.datasets.lidc_nodules import UNKNOWN_MM, Diameter, PlacedMark, group
from apps.medical.datasets.lidc_xml import Characteristic
from apps.medical.datasets.scan_data import ScanData
from apps.medical.datasets.scan_files import Mark, ScanFile
from apps.medical.datasets.splits import Split, draw_patients
from apps.medical.types import NODULE, ChestInput
from shared.errors import InvalidInputError

READERS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Lidc(ScanData):
    """LIDC-IDRI as it is downloaded: DICOM series and the readers' XML.

    ``root`` holds the CT series in folders, and the XML beside them or in ``annotations``.

    annotations        the folder of the XML, where it is not below ``root``
    readers            a nodule is what at least so many of the four readers outlined; what fewer did, nodules below
                       3 mm and what is no nodule count neither way
    diameter           volume: of the sphere of the same volume, as LUNA16's; axial: mean of long and short axis in the
                       slice where it is largest, as findings are measured
    characteristic     a class for each rating that readers gave it (their median): texture, malignancy and so on
    max_slice_thickness_mm   leaves thicker series out; LUNA16 takes those up to 2.5
    validation_share   of the patients, drawn by ``seed``, validate

    Series without XML, and those that cannot be read, are left out and counted.
    """

    root: Path
    annotations: Path | None = None
    readers: int = 3
    diameter: Diameter = "volume"
    characteristic: Characteristic | None = None
    max_slice_thickness_mm: float | None = None
    validation_share: float = 0.2
    seed: int = 0

    def fit_input(self, input: ChestInput) -> ChestInput:
        """With ``characteristic`` its ratings as classes, in place of the one that is there by default."""
        if self.characteristic is None:
            return input
        split = self.split()
        labels = {mark.label for scan in (*split.training, *split.validation) for mark in scan.nodules}
        return replace(input, classes=tuple(sorted(labels))) if labels else input

    def facts(self, input: ChestInput) -> Mapping[str, Any]:
        return {**ScanData.facts(self, input), **self._notes(self._collection())}

    def fingerprint(self) -> dict[str, Any]:
        found = self._collection()
        split = self._split(found)
        return {
            "description": f"LIDC-IDRI, nodules of 3 mm and more by {self.readers} readers",
            "synthetic": False,
            "scans": [len(split.training), len(split.validation)],
            "nodules": [sum(len(scan.nodules) for scan in part) for part in (split.training, split.validation)],
            "readers": self.readers,
            "diameter": self.diameter,
            "annotations_sha256": found.xml_sha256,
            # Counts alone: names of files are for whoever has them.
            "passed_over": {what: int(count.partition(":")[0]) for what, count in self._notes(found).items()},
        }

    def split(self) -> Split:
        """The series that readers marked, to learn from and to validate on."""
        return self._split(self._collection())

    def _split(self, found: Collection) -> Split:
        scans = [self._scan(series) for series in found.series if self._is_thin(series)]
        if not scans:
            raise InvalidInputError(
                f"none of the series in {self.root} has slices of {self.max_slice_thickness_mm} mm at the most "
                "(data.max_slice_thickness_mm)"
            )
        return draw_patients(scans, self.validation_share, self.seed, self.root)

    def _collection(self) -> Collection:
        if self.readers not in range(1, READERS + 1):
            raise InvalidInputError(f"data.readers is {self.readers}; LIDC-IDRI has 1 to {READERS} of a nodule")
        return read_collection(self.root, self.annotations)

    def _is_thin(self, series: ReadSeries) -> bool:
        return self.max_slice_thickness_mm is None or series.slice_mm <= self.max_slice_thickness_mm

    def _notes(self, found: Collection) -> Mapping[str, str]:
        thick = sum(not self._is_thin(series) for series in found.series)
        return {**found.notes, **({} if self.max_slice_thickness_mm is None else {"series too thick": str(thick)})}

    def _scan(self, series: ReadSeries) -> ScanFile:
        nodules = []
        excluded = [mark for mark in series.marks if mark.kind != "nodule"]
        for marks in group(series.marks):
            nodule = self._nodule(marks)
            if nodule is None:
                excluded += marks
            else:
                nodules.append(nodule)
        return ScanFile(
            path=self.root / series.folders[0],
            folders=tuple(self.root / folder for folder in series.folders[1:]),
            series=series.uid,
            name=series.uid,
            patient=series.patient,
            nodules=tuple(nodules),
            excluded=tuple(Mark(centre=mark.centre_lps_mm, diameter_mm=self._size(mark)) for mark in excluded),
        )

    def _size(self, mark: PlacedMark) -> float:
        return UNKNOWN_MM if mark.kind != "nodule" else mark.diameter_mm(self.diameter)

    def _nodule(self, marks: Sequence[PlacedMark]) -> Mark | None:
        """The nodule that some readers outlined; None where they are too few, or did not rate what tells its class."""
        rated = self.characteristic or ""
        ratings = sorted(mark.ratings[rated] for mark in marks if rated in mark.ratings)
        if len({mark.reader for mark in marks}) < self.readers or (rated and not ratings):
            return None
        x, y, z = (float(value) for value in np.mean([mark.centre_lps_mm for mark in marks], axis=0))
        return Mark(
            centre=(x, y, z),
            diameter_mm=float(np.mean([self._size(mark) for mark in marks])),
            # Of two middle ratings the higher one: LIDC's scales rise with what is rated.
            label=f"{rated} {ratings[len(ratings) // 2]}" if rated else NODULE,
        )
