"""Which CTs a folder holds, under which names a table may call them, and one of them read with its marks."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from apps.medical.adapters.axial import TURNED
from apps.medical.adapters.images import read_image, suffix
from apps.medical.adapters.source import read_volume
from apps.medical.types import NODULE, AnnotatedScan, CTVolume, Float64, Nodule
from shared.errors import InvalidInputError

Coordinates: TypeAlias = Literal["lps", "ras", "voxel"]
"""Positions in mm in DICOM's patient frame or in NIfTI's, or indices (i, j, k) from 0 of the array as it is stored."""


_MAX_LOOKED_AT = 100
"""Files of an archive that are looked at for a patient."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A nodule in a table: its centre in the table's coordinates, its diameter in mm (negative: unknown), its class."""

    centre: tuple[float, float, float]
    diameter_mm: float
    label: str = NODULE


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanFile:
    """A CT on disk with its marks.

    path         an image file, an archive, or a folder of DICOM files
    series       the SeriesInstanceUID in that folder; None for other sources
    folders      further folders that hold slices of the series
    name         what it is called in tables and in scores
    patient      what splits keep together
    excluded     findings that are neither nodules nor free of doubt
    candidates   places, in the same coordinates, that a simple detector took for nodules and are none
    """

    path: Path
    name: str
    patient: str
    series: str | None = None
    folders: tuple[Path, ...] = ()
    coordinates: Coordinates = "lps"
    nodules: tuple[Mark, ...] = ()
    excluded: tuple[Mark, ...] = ()
    candidates: tuple[tuple[float, float, float], ...] = ()

    def read(self) -> CTVolume:
        """The volume; refuses what cannot be used, with the file's name."""
        if suffix(self.path):
            return read_image([self.path])
        places = {self.path, *self.folders}  # what lies below one of them is read with it
        return read_volume(sorted(place for place in places if not places & {*place.parents}), series=self.series)

    def read_annotated(self) -> AnnotatedScan:
        """The volume with its nodules, each in a box as wide as its diameter."""
        volume = self.read()
        return AnnotatedScan(
            name=self.name,
            volume=volume,
            nodules=tuple(_nodule(self.to_lps_mm(volume, mark.centre), mark) for mark in self.nodules),
            excluded=tuple(_nodule(self.to_lps_mm(volume, mark.centre), mark) for mark in self.excluded),
        )

    def to_lps_mm(self, volume: CTVolume, position: ArrayLike) -> Float64:
        """Positions (..., 3) in this scan's coordinates, in LPS mm."""
        if self.coordinates == "voxel":
            if TURNED in volume.remarks:
                raise InvalidInputError(f"{self.path.name} is not stored in axial slices; give its marks in LPS mm")
            return volume.to_lps_mm(position)
        return np.asarray(position, np.float64) * ((-1.0, -1.0, 1.0) if self.coordinates == "ras" else 1.0)


def _nodule(centre: Float64, mark: Mark) -> Nodule:
    x, y, z = (float(value) for value in centre)
    half = max(mark.diameter_mm, 0.0) / 2
    box = (x - half, y - half, z - half, x + half, y + half, z + half)
    return Nodule(
        centre_lps_mm=(x, y, z), mean_diameter_mm=mark.diameter_mm, score=1.0, box_lps_mm=box, label=mark.label
    )


def find_scans(root: Path) -> dict[str, ScanFile]:
    """The CTs below ``root`` by every name that a table may call them; refuses a folder without any.

    These are the path from ``root``, the file's name with and without its ending, and for DICOM the folder's name and
    the SeriesInstanceUID. A series whose slices lie in several folders is one CT. A name that two have is left out.
    """
    if not root.is_dir():
        raise InvalidInputError(f"{root} is no folder; name the one that holds the scans with --data.root")
    named: dict[str, list[ScanFile]] = {}
    for scan, names in _found(root):
        for name in {*names, scan.name}:
            named.setdefault(name, []).append(scan)
    if not named:
        raise InvalidInputError(f"{root} holds no CT: no DICOM, NIfTI, NRRD or MetaImage file, and no archive of one")
    return {name: scans[0] for name, scans in named.items() if len(scans) == 1}


def _found(root: Path) -> Iterable[tuple[ScanFile, tuple[str, ...]]]:
    others: dict[Path, list[Path]] = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        relative, ending = path.relative_to(root).as_posix(), suffix(path)
        if ending is None and zipfile.is_zipfile(path):
            ending = path.suffix
        if ending is None:
            others.setdefault(path.parent, []).append(path)
            continue
        stem = path.name[: -len(ending)] if ending else path.name
        patient = (_archived_patient(path) if zipfile.is_zipfile(path) else "") or stem
        yield ScanFile(path=path, name=stem, patient=patient), (relative, path.name, stem)
    # An export may put a hundred files into a folder, whatever their series.
    held: dict[_Series, list[Path]] = {}
    alone = set()
    for folder, files in others.items():
        found = _series(files)
        for series in sorted(found):
            held.setdefault(series, []).append(folder)
        if len(found) == 1:
            alone.add(folder)
    for series, folders in held.items():
        homes = [folder for folder in folders if folder in alone]
        whole = Path(os.path.commonpath(folders))
        inside = {other for other, places in held.items() if any(whole in place.parents for place in places)}
        if len(folders) > 1 and whole != root and inside == {series}:
            homes.append(whole)
        names = {name for home in homes for name in (home.relative_to(root).as_posix(), home.name)}
        yield (
            ScanFile(
                path=folders[0],
                folders=tuple(folders[1:]),
                name=series.uid,
                series=series.uid,
                patient=series.patient or series.uid,
            ),
            tuple(names),
        )


def _archived_patient(path: Path) -> str:
    """The PatientID of the first CT image in an archive; empty where none of its first files is one."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist()[:_MAX_LOOKED_AT]:
            try:
                with archive.open(member) as file:
                    header = dcmread(file, stop_before_pixels=True, specific_tags=["PatientID", "Modality"])
            except (InvalidDicomError, OSError, EOFError, zipfile.BadZipFile, RuntimeError, NotImplementedError):
                continue
            if header.get("Modality") == "CT":
                return str(header.get("PatientID") or "")
    return ""


class _Series(NamedTuple):
    patient: str
    study: str
    uid: str


def _series(files: Iterable[Path]) -> set[_Series]:
    """The CT series among the files."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    tags = ["PatientID", "StudyInstanceUID", "SeriesInstanceUID", "Modality"]
    found = set()
    for file in files:
        try:
            header = dcmread(file, stop_before_pixels=True, specific_tags=tags)
        except (InvalidDicomError, OSError, EOFError):
            continue
        if header.get("Modality") == "CT" and header.get("SeriesInstanceUID"):
            found.add(_Series(*(str(header.get(tag) or "") for tag in tags[:3])))
    return found
