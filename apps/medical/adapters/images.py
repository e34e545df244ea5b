"""NRRD, NIfTI and MetaImage files of one CT volume; NRRD and MetaImage are read through SimpleITK."""

from __future__ import annotations

import re
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from apps.medical.adapters.axial import axial_volume
from apps.medical.adapters.nifti import read_nifti
from apps.medical.types import MAX_VOXELS, CTVolume
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    import SimpleITK

_MAX_HEADER_BYTES = 1 << 18
_SPACES = (b"lps", b"ras", b"las", b"left-posterior-superior", b"right-anterior-superior", b"left-anterior-superior")


def suffix(file: Path) -> str | None:
    """Which of the formats a file's name says it is, or None."""
    name = file.name.lower()
    return next((ending for ending in sorted(READERS, key=len, reverse=True) if name.endswith(ending)), None)


def read_image(files: Sequence[Path]) -> CTVolume:
    """The volume in the one header file among ``files``; a MetaImage's or NRRD's separate data lie beside it."""
    (file,) = [path for path in files if suffix(path)]
    ending = suffix(file)
    assert ending is not None
    return READERS[ending](file, _identifiers(file.name[: -len(ending)]))


def _read_itk(image_io: str, file: Path, identifiers: dict[str, str]) -> CTVolume:
    """A NRRD or MetaImage file, by the ImageIO of ITK's that reads it."""
    import SimpleITK

    ending = suffix(file)
    assert ending is not None
    header = _header_without_other_data(file, ending)
    # Its warnings go to the terminal, with the file's name.
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO(image_io)
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
        size = reader.GetSize()
        if len(size) != 3 or min(size) < 2 or reader.GetNumberOfComponents() != 1:
            raise InvalidInputError(f"{file.name} is not one volume: its size is {size}; hand in a single 3D CT")
        if np.prod([float(n) for n in size]) > MAX_VOXELS:
            raise InvalidInputError(f"{file.name} states {size} voxels, more than a CT has", status=413)
        _must_state_its_grid(file, ending, header)
        if ending.startswith(".m") and re.search(rb"^\s*CompressedData\s*[=:]\s*[Tt1]", header, re.M):
            with tempfile.TemporaryDirectory() as folder:
                plain = Path(folder) / "plain.mha"
                plain.write_bytes(_unpacked(file, header, int(np.prod(size)) * _pixel_bytes(reader)))
                reader.SetFileName(str(plain))
                image = reader.Execute()
        else:
            image = reader.Execute()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].replace(str(file), file.name)
        said = "its voxels end too early" if reason == "Reason: Success" else reason
        raise InvalidInputError(f"{file.name} cannot be read as {ending}: {said}") from error
    values = SimpleITK.GetArrayViewFromImage(image)
    if not np.issubdtype(values.dtype, np.number) or np.iscomplexobj(values):
        raise InvalidInputError(f"{file.name} holds values that are not numbers; expected Hounsfield units")
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return axial_volume(file.name, values, affine, identifiers)


def _must_state_its_grid(file: Path, ending: str, header: bytes) -> None:
    """Refuses a header whose readers fill in a spacing of 1 mm, or a side of the patient, that nobody stated."""
    if ending.startswith(".m"):
        if not re.search(rb"^\s*Element(Spacing|Size)\s*[=:]", header, re.M):
            raise InvalidInputError(f"{file.name} states no ElementSpacing; without it nothing can be measured")
        return
    if (space := re.search(rb"^space *:(.*)", header, re.I | re.M)) is None or space[1].strip().lower() not in _SPACES:
        raise InvalidInputError(
            f"{file.name} does not say how the patient lies (its header's `space` is none of LPS, RAS and LAS), so "
            "that left and right cannot be told; convert the DICOM series anew"
        )
    units = re.search(rb"^space units *:(.*)", header, re.I | re.M)
    if units and set(re.findall(rb'"(.*?)"', units[1])) - {b"mm", b""}:
        raise InvalidInputError(
            f"{file.name} is in other units than mm ({units[1].decode('utf-8', 'replace').strip()})"
        )
    if not re.search(rb"^(space directions|spacings) *:", header, re.I | re.M):
        raise InvalidInputError(f"{file.name} states no space directions; without them nothing can be measured")


def _pixel_bytes(reader: SimpleITK.ImageFileReader) -> int:
    import SimpleITK

    return int(SimpleITK.Image([1, 1], reader.GetPixelID()).GetSizeOfPixelComponent())


def _unpacked(file: Path, header: bytes, size: int) -> bytes:
    """A compressed MetaImage as one that is not; refuses a torn or damaged one.

    ITK gives whatever lies in memory for voxels that it cannot unpack.
    """
    line = re.search(rb"^\s*ElementDataFile\s*[=:]\s*(.*?)\r?\n", header, re.M)
    if line is None:
        raise InvalidInputError(f"{file.name} does not say where its voxels are; convert it anew")
    named = line[1].strip().decode("utf-8", "replace")
    local = named.upper() == "LOCAL"
    unpacker = zlib.decompressobj(wbits=47)
    try:
        with (file if local else file.parent / named).open("rb") as stream:
            stream.seek(line.end() if local else 0)
            voxels = unpacker.decompress(stream.read(), size + 1)
    except zlib.error:
        voxels = b""
    if len(voxels) != size or not unpacker.eof:
        raise InvalidInputError(f"{file.name}: its compressed voxels are torn or damaged; send it again")
    kept = re.sub(rb"^\s*CompressedData.*\n", b"", header[: line.start()], flags=re.M)
    return kept.rstrip(b"\r\n") + b"\nElementDataFile = LOCAL\n" + voxels


def _identifiers(stem: str) -> dict[str, str]:
    """The series that LUNA16 and others name a file after (PS3.5 9.1); no other name of a file is kept."""
    return {"SeriesInstanceUID": stem} if re.fullmatch(r"[0-9]+(\.[0-9]+){5,}", stem) and len(stem) <= 64 else {}


def _header_without_other_data(file: Path, ending: str) -> bytes:
    """The header of a NRRD or MetaImage, which may name its data's file: only one beside it, never one elsewhere.

    Stricter than the readers: whatever might be taken for the name of a file counts, wherever it stands.
    """
    with file.open("rb") as content:
        header = content.read(_MAX_HEADER_BYTES)
    if ending.startswith(".n"):
        header, blank, _ = header.replace(b"\r\n", b"\n").partition(b"\n\n")
        found = re.findall(rb"data ?file\s*:(.*)", header, re.I)
        # Without a blank line before them voxels are taken for lines of the header, which ends ITK with a SIGSEGV.
        whole = bool(blank or found) and not re.search(rb"[\0-\x08\x0b-\x1f]", header)
    else:
        found = re.findall(rb"ElementDataFile[\s=:]*(.*)", header, re.I)
        whole = bool(found)
    if not whole:
        raise InvalidInputError(
            f"{file.name} has no header that can be read in its first {_MAX_HEADER_BYTES >> 10} KiB"
        )
    for value in found:
        named = value.strip().decode("utf-8", "replace")
        if named.upper() == "LOCAL" and ending.startswith(".m"):
            continue
        listed = named.upper().startswith("LIST") or "%" in named
        if listed or Path(named).name != named or not (file.parent / named).is_file():
            raise InvalidInputError(
                f"{file.name} keeps its voxels in {named!r}; hand that file in with it, or a single-file image"
            )
    return header


READERS: Mapping[str, Callable[[Path, dict[str, str]], CTVolume]] = {
    ".nrrd": partial(_read_itk, "NrrdImageIO"),
    ".nhdr": partial(_read_itk, "NrrdImageIO"),
    ".mha": partial(_read_itk, "MetaImageIO"),
    ".mhd": partial(_read_itk, "MetaImageIO"),
    ".nii": read_nifti,
    ".nii.gz": read_nifti,
}
"""What reads an image file, by its name's ending: the file, and DICOM's identifiers as far as its name tells them."""
