"""Finds the CTs in a folder with the names that a table may use for them, and reads a CT with its marks."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from apps.medical.adapters.axial import AXES_REORDERED
from apps.medical.adapters.images import image_suffix, read_image
from apps.medical.adapters.source import read_volume
from apps.medical.types import NODULE, AnnotatedScan, CTVolume, Float64, Nodule
from shared.errors import InvalidInputError

Coordinates: TypeAlias = Literal["lps", "ras", "voxel"]
"""Positions in mm in the patient frame of DICOM or NIfTI, or indices (i, j, k) from 0 in the stored array."""

_MAX_MEMBERS_READ = 100
"""Maximum number of files in an archive that are searched for a PatientID."""


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
    folders      further folders with slices of the series
    name         the name in tables and scores
    patient      the patient; splits keep scans of a patient together
    excluded     ambiguous findings, which count neither way
    candidates   positions, in the same coordinates, of false positives of a simple detector
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
        """Reads the volume. Raises InvalidInputError, with the file's name, if it is unusable."""
        if image_suffix(self.path):
            return read_image([self.path])
        folders = {self.path, *self.folders}  # reading a folder includes its subfolders
        return read_volume(sorted(folder for folder in folders if not folders & {*folder.parents}), series=self.series)

    def read_annotated(self) -> AnnotatedScan:
        """Reads the volume with its nodules; the box of each nodule is a cube with its diameter as side."""
        volume = self.read()
        return AnnotatedScan(
            name=self.name,
            volume=volume,
            nodules=tuple(_nodule(self.to_lps_mm(volume, mark.centre), mark) for mark in self.nodules),
            excluded=tuple(_nodule(self.to_lps_mm(volume, mark.centre), mark) for mark in self.excluded),
        )

    def to_lps_mm(self, volume: CTVolume, position: ArrayLike) -> Float64:
        """Converts positions (..., 3) from the coordinates of this scan's marks to LPS mm."""
        if self.coordinates == "voxel":
            if AXES_REORDERED in volume.remarks:
                raise InvalidInputError(f"{self.path.name} is not stored in axial slices; give its marks in LPS mm")
            return volume.to_lps_mm(position)
        return np.asarray(position, np.float64) * ((-1.0, -1.0, 1.0) if self.coordinates == "ras" else 1.0)


def _nodule(centre: Float64, mark: Mark) -> Nodule:
    x, y, z = (float(value) for value in centre)
    radius = max(mark.diameter_mm, 0.0) / 2
    box = (x - radius, y - radius, z - radius, x + radius, y + radius, z + radius)
    return Nodule(
        centre_lps_mm=(x, y, z), mean_diameter_mm=mark.diameter_mm, score=1.0, box_lps_mm=box, label=mark.label
    )


def find_scans(root: Path) -> dict[str, ScanFile]:
    """The CTs below ``root`` by every name that a table may use for them.

    The names are the path relative to ``root``, the file name with and without its suffix, and for DICOM the folder
    name and the SeriesInstanceUID. A series with slices in several folders is one CT. Names that match more than one CT
    are left out. Raises InvalidInputError if there is no CT.
    """
    if not root.is_dir():
        raise InvalidInputError(f"{root} is not a folder; give the folder of the scans with --data.root")
    scans_by_name: dict[str, list[ScanFile]] = {}
    for scan, names in _list_scans(root):
        for name in {*names, scan.name}:
            scans_by_name.setdefault(name, []).append(scan)
    if not scans_by_name:
        raise InvalidInputError(f"{root} holds no CT: no DICOM, NIfTI, NRRD or MetaImage file, and no archive with one")
    return {name: scans[0] for name, scans in scans_by_name.items() if len(scans) == 1}


def _list_scans(root: Path) -> Iterable[tuple[ScanFile, tuple[str, ...]]]:
    """Every CT below ``root``, with the names that a table may use besides its own."""
    others: dict[Path, list[Path]] = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        relative, ending = path.relative_to(root).as_posix(), image_suffix(path)
        if ending is None and zipfile.is_zipfile(path):
            ending = path.suffix
        if ending is None:
            others.setdefault(path.parent, []).append(path)
            continue
        stem = path.name[: -len(ending)] if ending else path.name
        patient = (_patient_in_archive(path) if zipfile.is_zipfile(path) else "") or stem
        yield ScanFile(path=path, name=stem, patient=patient), (relative, path.name, stem)
    # Some exports put a hundred files into each folder, regardless of their series.
    folders_by_series: dict[_Series, list[Path]] = {}
    single_series_folders = set()
    for folder, files in others.items():
        found = _ct_series(files)
        for series in sorted(found):
            folders_by_series.setdefault(series, []).append(folder)
        if len(found) == 1:
            single_series_folders.add(folder)
    for series, folders in folders_by_series.items():
        own_folders = [folder for folder in folders if folder in single_series_folders]
        parent = Path(os.path.commonpath(folders))
        below_parent = {
            below for below, paths in folders_by_series.items() if any(parent in path.parents for path in paths)
        }
        if len(folders) > 1 and parent != root and below_parent == {series}:
            own_folders.append(parent)
        names = {name for folder in own_folders for name in (folder.relative_to(root).as_posix(), folder.name)}
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


def _patient_in_archive(path: Path) -> str:
    """The PatientID of the first CT image in an archive; empty if there is none among its first files."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist()[:_MAX_MEMBERS_READ]:
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


def _ct_series(files: Iterable[Path]) -> set[_Series]:
    """The CT series of the files, by their DICOM headers."""
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
