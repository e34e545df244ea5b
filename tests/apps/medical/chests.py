"""Chests for tests: a small one with two lungs, and any volume as the files of a DICOM series."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from apps.medical.types import AnnotatedScan, CTVolume, Findings, Nodule


def chest() -> CTVolume:
    """Two lungs in a body of 300 x 240 x 100 mm, with one nodule in the patient's right lung."""
    k, j, i = np.indices((20, 80, 100))
    voxels = np.full(i.shape, -1000, np.int16)
    voxels[((i - 50) / 45) ** 2 + ((j - 40) / 32) ** 2 < 1] = 40
    for middle in (30, 70):
        voxels[((i - middle) / 15) ** 2 + ((j - 40) / 22) ** 2 + ((k - 10) / 9) ** 2 < 1] = -850
    voxels[9:11, 38:42, 28:32] = 30
    return CTVolume(voxels_zyx=voxels, spacing_mm=(3.0, 3.0, 5.0), origin_lps_mm=(-150.0, -120.0, -400.0))


def annotated_chests(seed: int, count: int) -> Iterator[AnnotatedScan]:
    """The small chest with its nodule, in place of phantoms, which take 20 seconds each on one core."""
    volume = chest()
    x, y, z = volume.to_lps_mm((29.5, 39.5, 9.5)).tolist()
    box = (x - 6, y - 6, z - 5, x + 6, y + 6, z + 5)
    nodule = Nodule(centre_lps_mm=(x, y, z), mean_diameter_mm=12.0, score=1.0, box_lps_mm=box)
    yield AnnotatedScan(name="one", volume=volume, nodules=(nodule,))


LUNG_BOX = (-120.0, -90.0, -390.0, 100.0, 80.0, -310.0)


def found(*nodules: Nodule, searched: bool = True, cut: bool = False) -> Findings:
    """Findings of a chest with these nodules; ``searched`` is False for a scan without lungs."""
    lungs = (LUNG_BOX, 900.0) if searched else (None, None)
    return Findings(
        nodules=nodules, operating_score=0.5, lung_box_lps_mm=lungs[0], lung_millilitres=lungs[1], lungs_cut=cut
    )


def dicom_slice(volume: CTVolume, k: int, **tags: object) -> bytes:
    """Slice ``k`` as a CT image; tags of None are removed. Instance numbers count from the head, as scanners do."""
    series = str(tags.get("SeriesInstanceUID", "1.2.3"))
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = f"{series}.{k + 1}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset("slice", {}, file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    image.Modality, image.SeriesInstanceUID, image.SeriesNumber = "CT", "1.2.3", 4
    image.StudyInstanceUID, image.InstanceNumber = "1.2", len(volume.voxels_zyx) - k
    image.Rows, image.Columns = volume.voxels_zyx.shape[1:]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
    image.RescaleSlope, image.RescaleIntercept = 1, -1024
    image.PixelSpacing = [volume.spacing_mm[1], volume.spacing_mm[0]]
    image.ImageOrientationPatient = [*volume.direction[:, 0], *volume.direction[:, 1]]
    image.ImagePositionPatient = [f"{value:.6f}" for value in volume.to_lps_mm([0, 0, k])]
    image.PixelData = (volume.voxels_zyx[k].astype(np.int32) + 1024).astype(np.uint16).tobytes()
    for name, value in tags.items():
        if value is None:
            delattr(image, name)
        else:
            setattr(image, name, value)
    out = io.BytesIO()
    image.save_as(out, enforce_file_format=True)
    return out.getvalue()


def series(volume: CTVolume, **tags: object) -> dict[str, bytes]:
    """All slices by file name; the order of the names differs from that of the slices."""
    return {f"IM{(7 * k) % 31}": dicom_slice(volume, k, **tags) for k in range(len(volume.voxels_zyx))}


WHO = {"PatientName": "Müller^Jürgen", "PatientID": "4711", "AccessionNumber": "A1", "StudyDate": "20250301"}
"""DICOM attributes that name a patient and a study."""


def pack(folder: Path, members: dict[str, bytes], name: str = "scan.zip") -> Path:
    """A zip archive of the members."""
    path = folder / name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return path


def medium(folder: Path, volume: CTVolume, first: int = 1) -> Path:
    """The series as on a medium, head first: files without an extension, with the same name in several folders."""
    slices = len(volume.voxels_zyx)
    for k in range(slices):
        home = folder / "medium" / f"SE{k}"
        home.mkdir(parents=True)
        (home / "IM000001").write_bytes(dicom_slice(volume, k, InstanceNumber=first + slices - 1 - k))
    (folder / "medium" / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(80))
    return folder / "medium"


def body_with_lungs() -> CTVolume:
    """An oval body of soft tissue with two ellipsoids of lung in it, in LPS."""
    k, j, i = np.indices((30, 80, 100))
    voxels = np.full(i.shape, -1000, np.int16)
    voxels[((i - 50) / 45) ** 2 + ((j - 40) / 32) ** 2 < 1] = 40
    for middle in (30, 70):
        inside = ((i - middle) / 15) ** 2 + ((j - 40) / 22) ** 2 + ((k - 15) / 11) ** 2 < 1
        voxels[inside] = -850
    return CTVolume(voxels_zyx=voxels, spacing_mm=(3.0, 3.0, 5.0), origin_lps_mm=(-150.0, -120.0, 0.0))
