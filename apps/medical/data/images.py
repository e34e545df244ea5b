"""NRRD, NIfTI and MetaImage files of one CT volume; NRRD and MetaImage are read through SimpleITK."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from apps.medical.data.axial import MOST_VOXELS, axial_volume
from apps.medical.data.nifti import read_nifti
from apps.medical.types import CTVolume
from shared.refusal import Refusal

READERS = {
    ".nrrd": "NrrdImageIO",
    ".nhdr": "NrrdImageIO",
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
}
ENDINGS = (*READERS, ".nii", ".nii.gz")
_LONGEST_HEADER = 1 << 18


def suffix(file: Path) -> str | None:
    """Which of the formats a file's name says it is, or None."""
    name = file.name.lower()
    return next((ending for ending in sorted(ENDINGS, key=len, reverse=True) if name.endswith(ending)), None)


def read_image(files: Sequence[Path]) -> CTVolume:
    """The volume in the one header file among ``files``; a MetaImage's or NRRD's separate data lie beside it."""
    import SimpleITK

    (file,) = [path for path in files if suffix(path)]
    ending = suffix(file)
    assert ending is not None
    identifiers = _identifiers(file.name[: -len(ending)])
    if ending in (".nii", ".nii.gz"):
        return read_nifti(file, identifiers)
    header = _header_without_other_data(file, ending)
    # Its warnings go to the terminal, with the file's name.
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
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
        if ending.startswith(".n") and not re.search(rb"^space *:", header, re.I | re.M):
            raise Refusal(
                f"{file.name} does not say how the patient lies (its header has no field `space`), so that left and "
                "right cannot be told; convert the DICOM series anew"
            )
        image = reader.Execute()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].replace(str(file), file.name)
        raise Refusal(f"{file.name} cannot be read as {ending}: {reason}") from error
    values = SimpleITK.GetArrayViewFromImage(image)
    if not np.issubdtype(values.dtype, np.number) or np.iscomplexobj(values):
        raise Refusal(f"{file.name} holds values that are not numbers; expected Hounsfield units")
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return axial_volume(file.name, values, affine, identifiers)


def _identifiers(stem: str) -> dict[str, str]:
    """The series that LUNA16 and others name a file after (PS3.5 9.1); no other name of a file is kept."""
    return {"SeriesInstanceUID": stem} if re.fullmatch(r"[0-9]+(\.[0-9]+){5,}", stem) and len(stem) <= 64 else {}


def _header_without_other_data(file: Path, ending: str) -> bytes:
    """The header of a NRRD or MetaImage, which may name its data's file: only one beside it, never one elsewhere.

    Stricter than the readers: whatever might be taken for the name of a file counts, wherever it stands.
    """
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
    return header
