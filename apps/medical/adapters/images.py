"""NRRD, NIfTI and MetaImage files of one CT volume; NRRD and MetaImage are read through SimpleITK."""

from __future__ import annotations

import re
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from apps.medical.adapters.axial import axial_volume
from apps.medical.adapters.nifti import read_nifti
from apps.medical.types import MAX_VOXELS, CTVolume, Float64
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    import SimpleITK

_MAX_HEADER_BYTES = 1 << 18
_SPACES = (b"lps", b"ras", b"las", b"left-posterior-superior", b"right-anterior-superior", b"left-anterior-superior")

_MATRIX, _ORIGIN = (rb"^\s*(TransformMatrix|Rotation|Orientation)\s*[=:]", rb"^\s*(Offset|Position|Origin)\s*[=:]")
"""The names that MetaIO takes for a MetaImage's direction and origin."""

_RISING = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "I": (2, 1), "S": (2, -1)}
"""MetaIO's letters of the side that an axis comes from: the axis of LPS, and whether it rises along it."""

ASSUMED_LPS = (
    "The file does not say how the patient lies: its axes were taken to run to the patient's left, back and head. Left "
    "and right may be the other way round."
)
NO_ORIGIN = "The file states no origin: positions in mm are counted from its first voxel, not as in the DICOM series."


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
        said = _must_state_its_grid(file, ending, header)
        if ending.startswith(".m") and re.search(rb"^\s*CompressedData\s*[=:]\s*[Tt1]", header, re.M):
            with tempfile.TemporaryDirectory() as folder:
                plain = Path(folder) / "plain.mha"
                plain.write_bytes(_unpacked(file, header, int(np.prod(size)) * _pixel_bytes(reader)))
                reader.SetFileName(str(plain))
                image = reader.Execute()
        else:
            image = reader.Execute()
    except RuntimeError as error:
        _must_state_its_grid(file, ending, header)
        reason = str(error).strip().splitlines()[-1].replace(str(file), file.name)
        why = "its voxels end too early" if reason == "Reason: Success" else reason
        raise InvalidInputError(f"{file.name} cannot be read as {ending}: {why}") from error
    values = SimpleITK.GetArrayViewFromImage(image)
    if not np.issubdtype(values.dtype, np.number) or np.iscomplexobj(values):
        raise InvalidInputError(f"{file.name} holds values that are not numbers; expected Hounsfield units")
    direction = np.array(image.GetDirection()).reshape(3, 3)
    if ending.startswith(".m"):
        _must_lie_one_way(file, header, direction)
    affine = np.eye(4)
    affine[:3, :3] = direction * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    volume = axial_volume(file.name, values, affine, identifiers)
    return replace(volume, remarks=(*volume.remarks, *said))


def _must_lie_one_way(file: Path, header: bytes, direction: Float64) -> None:
    """Refuses a MetaImage whose AnatomicalOrientation is another than its matrix, which alone ITK reads.

    Some writers mean the side that an axis goes to; beside a matrix either is taken.
    """
    stated = re.search(rb"^\s*AnatomicalOrientation\s*[=:]\s*([RLAPIS]{3})\s*$", header, re.M | re.I)
    if stated is None:
        return
    letters = stated[1].decode().upper()
    rising = [direction[axis, n] * sign for n, (axis, sign) in enumerate(_RISING[letter] for letter in letters)]
    if min(rising) < 0.5 and (max(rising) > -0.5 or not re.search(_MATRIX, header, re.M)):
        raise InvalidInputError(
            f"{file.name} says in two ways how the patient lies (AnatomicalOrientation = {letters}, and another "
            "TransformMatrix, or none), so that left and right cannot be told; keep the one that is right, as "
            "TransformMatrix"
        )


def _must_state_its_grid(file: Path, ending: str, header: bytes) -> list[str]:
    """Refuses a header whose readers fill in a spacing of 1 mm, or a side of the patient, that nobody stated.

    Returns what is to be said of what the format fills in.
    """
    if ending.startswith(".m"):
        if not re.search(rb"^\s*Element(Spacing|Size)\s*[=:]", header, re.M):
            raise InvalidInputError(f"{file.name} states no ElementSpacing; without it nothing can be measured")
        told = re.search(_MATRIX, header, re.M) or re.search(rb"^\s*AnatomicalOrientation\s*[=:]\s*RAI", header, re.M)
        return [*([] if told else [ASSUMED_LPS]), *([] if re.search(_ORIGIN, header, re.M) else [NO_ORIGIN])]
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
    grid = {field.lower() for field in re.findall(rb"^(space directions|spacings) *:", header, re.I | re.M)}
    if grid != {b"space directions"}:
        raise InvalidInputError(
            f"{file.name} states no space directions, or `spacings` with them: beside `space` NRRD allows space "
            "directions alone, and without them nothing can be measured; convert the DICOM series anew"
        )
    return [] if re.search(rb"^space origin *:", header, re.I | re.M) else [NO_ORIGIN]


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
