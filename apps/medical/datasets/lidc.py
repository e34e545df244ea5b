"""LIDC-IDRI as downloaded: DICOM series, and XML files with the marks of four readers of each series.

Armato et al., Medical Physics 38(2), 2011; The Cancer Imaging Archive, CC BY 3.0. Nodules and excluded findings are
defined as in LUNA16, which is derived from LIDC-IDRI (Setio et al., Medical Image Analysis 42, 2017).
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
from apps.medical.datasets.splits import Split, split_patients
from apps.medical.types import NODULE, ChestInput, triple
from shared.errors import InvalidInputError

READERS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Lidc(ScanData):
    """LIDC-IDRI as downloaded: DICOM series and the readers' XML.

    ``root`` holds the CT series in folders, and the XML beside them or in ``annotations``.

    annotations        the folder of the XML, if it is not below ``root``
    readers            the minimum number of the four readers who outlined a nodule; nodules with fewer outlines,
                       nodules below 3 mm and non-nodules are excluded: they count neither way
    diameter           volume: of the sphere with the same volume, as in LUNA16; axial: the mean of the axes in the
                       slice where the nodule is largest, as findings are measured
    characteristic     a rating of the readers whose median is the class: texture, malignancy and so on
    max_slice_thickness_mm   the maximum slice thickness; LUNA16 includes series up to 2.5 mm
    validation_share   fraction of the patients used for validation, drawn by ``seed``

    Series without XML and unreadable series are left out and counted.
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
        """If ``characteristic`` is set, uses its ratings as classes instead of the single default class."""
        if self.characteristic is None:
            return input
        split = self.split()
        labels = {mark.label for scan in (*split.training, *split.validation) for mark in scan.nodules}
        return replace(input, classes=tuple(sorted(labels))) if labels else input

    def facts(self, input: ChestInput) -> Mapping[str, Any]:
        return {**ScanData.facts(self, input), **self._notes(self._collection())}

    def fingerprint(self) -> dict[str, Any]:
        collection = self._collection()
        return {
            "description": f"LIDC-IDRI, nodules of 3 mm and more by {self.readers} readers",
            "synthetic": False,
            **self._split(collection).counts(),
            "readers": self.readers,
            "diameter": self.diameter,
            "annotations_sha256": collection.xml_sha256,
            # Only counts: the file names stay with whoever has the files.
            "passed_over": {name: int(count.partition(":")[0]) for name, count in self._notes(collection).items()},
        }

    def split(self) -> Split:
        """Splits the annotated series into training and validation."""
        return self._split(self._collection())

    def _split(self, collection: Collection) -> Split:
        scans = [self._scan(series) for series in collection.series if self._is_thin(series)]
        if not scans:
            raise InvalidInputError(
                f"none of the series in {self.root} has slices of at most {self.max_slice_thickness_mm} mm "
                "(data.max_slice_thickness_mm)"
            )
        return split_patients(scans, self.validation_share, self.seed, self.root)

    def _collection(self) -> Collection:
        if self.readers not in range(1, READERS + 1):
            raise InvalidInputError(
                f"data.readers is {self.readers}; expected 1 to {READERS}, since LIDC-IDRI has {READERS} readers"
            )
        return read_collection(self.root, self.annotations)

    def _is_thin(self, series: ReadSeries) -> bool:
        return self.max_slice_thickness_mm is None or series.slice_mm <= self.max_slice_thickness_mm

    def _notes(self, collection: Collection) -> Mapping[str, str]:
        thick = sum(not self._is_thin(series) for series in collection.series)
        return {
            **collection.notes,
            **({} if self.max_slice_thickness_mm is None else {"series too thick": str(thick)}),
        }

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
        """The nodule that ``marks`` outline; None if too few readers outlined it or none rated its characteristic."""
        characteristic = self.characteristic or ""
        ratings = sorted(mark.ratings[characteristic] for mark in marks if characteristic in mark.ratings)
        if len({mark.reader for mark in marks}) < self.readers or (characteristic and not ratings):
            return None
        return Mark(
            centre=triple(np.mean([mark.centre_lps_mm for mark in marks], axis=0).tolist()),
            diameter_mm=float(np.mean([self._size(mark) for mark in marks])),
            # The upper median, since LIDC's scales rise with the characteristic.
            label=f"{characteristic} {ratings[len(ratings) // 2]}" if characteristic else NODULE,
        )
