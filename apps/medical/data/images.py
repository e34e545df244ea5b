"""NRRD, NIfTI and MetaImage files of one CT volume, read and written through SimpleITK."""

from __future__ import annotations

import gzip
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from apps.medical.data.hounsfield import must_be_hounsfield
from apps.medical.types import CTVolume
from shared.refusal import Refusal

READERS = {
    ".nrrd": "NrrdImageIO",
    ".nhdr": "NrrdImageIO",
    ".nii": "NiftiImageIO",
    ".nii.gz": "NiftiImageIO",
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
}
MOST_VOXELS = 1 << 30
_LONGEST_HEADER = 1 << 18


def suffix(file: Path) -> str | None:
    """Which of the formats a file's name says it is, or None."""
    name = file.name.lower()
    return next((ending for ending in sorted(READERS, key=len, reverse=True) if name.endswith(ending)), None)


def read_image(files: Sequence[Path]) -> CTVolume:
    """The volume in the one header file among ``files``; a MetaImage's or NRRD's separate data lie beside it."""
    import SimpleITK

    (file,) = [path for path in files if suffix(path)]
    ending = suffix(file)
    assert ending is not None
    _refuse_other_data(file, ending)
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO(READERS[ending])
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
        size = reader.GetSize()
        if len(size) != 3 or min(size) < 2 or reader.GetNumberOfComponents() != 1:
            raise Refusal(f"{file.name} is not one volume: its size is {size}; hand in a single 3D CT")
        if np.prod([float(n) for n in size]) > MOST_VOXELS:
            raise Refusal(f"{file.name} states {size} voxels, more than a CT has", status=413)
        image = reader.Execute()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise Refusal(f"{file.name} cannot be read as {ending}: {reason}") from error
    values = SimpleITK.GetArrayViewFromImage(image)
    if not np.issubdtype(values.dtype, np.number) or np.iscomplexobj(values) or not np.isfinite(values).all():
        raise Refusal(f"{file.name} holds values that are not finite numbers; expected Hounsfield units")
    must_be_hounsfield(file.name, float(values.min()), float(values.max()))
    voxels = np.clip(np.rint(values), -1024, 32767).astype(np.int16)
    return CTVolume(
        voxels_zyx=np.ascontiguousarray(voxels),
        spacing_mm=image.GetSpacing(),
        origin_lps_mm=image.GetOrigin(),
        direction=np.array(image.GetDirection()).reshape(3, 3),
        identifiers=_identifiers(file.name[: -len(ending)]),
    )


def _identifiers(stem: str) -> dict[str, str]:
    """The series that LUNA16 and others name a file after (PS3.5 9.1); no other name of a file is kept."""
    return {"SeriesInstanceUID": stem} if re.fullmatch(r"[0-9]+(\.[0-9]+){5,}", stem) and len(stem) <= 64 else {}


def _refuse_other_data(file: Path, ending: str) -> None:
    """A header may name its data's file; only one beside it is read, and never one elsewhere on this machine.

    Stricter than the readers: whatever might be taken for the name of a file counts, wherever it stands.
    """
    if ending not in (".nrrd", ".nhdr", ".mha", ".mhd"):
        return
    with file.open("rb") as content:
        header = content.read(_LONGEST_HEADER)
    if ending.startswith(".n"):
        header, blank, _ = header.replace(b"\r\n", b"\n").partition(b"\n\n")
        whole = bool(blank) or file.stat().st_size < _LONGEST_HEADER
        found = re.findall(rb"data ?file\s*:(.*)", header, re.I)
    else:
        found = re.findall(rb"ElementDataFile[\s=:]*(.*)", header, re.I)
        whole = bool(found)
    if not whole:
        raise Refusal(f"{file.name} has no header that can be read in its first {_LONGEST_HEADER >> 10} KiB")
    for value in found:
        named = value.strip().decode("utf-8", "replace")
        if named.upper() == "LOCAL" and ending.startswith(".m"):
            continue
        listed = named.upper().startswith("LIST") or "%" in named
        if listed or Path(named).name != named or not (file.parent / named).is_file():
            raise Refusal(
                f"{file.name} keeps its voxels in {named!r}; hand that file in with it, or a single-file image"
            )


def nifti(volume: CTVolume) -> bytes:
    """The volume as a compressed NIfTI-1 file (its frame is RAS, its origin the centre of the first voxel)."""
    import nibabel

    lps = np.eye(4)
    lps[:3, :3] = volume.direction * volume.spacing_mm
    lps[:3, 3] = volume.origin_lps_mm
    image = nibabel.Nifti1Image(volume.voxels_zyx.transpose(2, 1, 0), np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)
