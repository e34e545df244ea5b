"""Reads NRRD, NIfTI and MetaImage files of one CT volume; NRRD and MetaImage through SimpleITK."""

from __future__ import annotations

import mmap
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

_MAX_HEADER_BYTES, _MAX_FIELD_BYTES = 1 << 18, 1 << 10
_SPACES = (b"lps", b"ras", b"las", b"left-posterior-superior", b"right-anterior-superior", b"left-anterior-superior")

_MATRIX, _ORIGIN = (rb"^\s*(TransformMatrix|Rotation|Orientation)\s*[=:]", rb"^\s*(Offset|Position|Origin)\s*[=:]")
"""Patterns of the fields that MetaIO accepts for a MetaImage's direction and origin."""

_LPS_DIRECTION = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "I": (2, 1), "S": (2, -1)}
"""MetaIO's letter of the side that an axis starts from: the LPS axis, and the sign of its direction along it."""

ASSUMED_LPS = (
    "The file does not state its orientation: its axes were assumed to run to the patient's left, back and head. Left "
    "and right may be swapped."
)
NO_ORIGIN = "The file states no origin: positions in mm are relative to its first voxel, not as in the DICOM series."


def image_suffix(file: Path) -> str | None:
    """The key in ``READERS`` that a file's name ends with, in any case; None if it ends with none of them."""
    name = file.name.lower()
    return next((ending for ending in sorted(READERS, key=len, reverse=True) if name.endswith(ending)), None)


def read_image(files: Sequence[Path]) -> CTVolume:
    """The volume in the one image or header file among ``files``; the others are its separate data files."""
    (file,) = [path for path in files if image_suffix(path)]
    ending = image_suffix(file)
    assert ending is not None
    return READERS[ending](file, _identifiers(file.name[: -len(ending)]))


def _read_itk(image_io: str, file: Path, identifiers: dict[str, str]) -> CTVolume:
    """Reads a NRRD or MetaImage file with the ITK ImageIO class ``image_io``."""
    import SimpleITK

    ending = image_suffix(file)
    assert ending is not None
    header = _checked_header(file, ending)
    # ITK prints warnings that contain the file's name.
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO(image_io)
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
        size = reader.GetSize()
        if len(size) != 3 or min(size) < 2 or reader.GetNumberOfComponents() != 1:
            raise InvalidInputError(f"{file.name} is not one volume: its size is {size}; provide a single 3D CT")
        if np.prod([float(n) for n in size]) > MAX_VOXELS:
            raise InvalidInputError(f"{file.name} states {size} voxels, which is too large for a CT", status=413)
        remarks = _require_grid(file, ending, header)
        if ending.startswith(".m") and re.search(rb"^\s*CompressedData\s*[=:]\s*[Tt1]", header, re.M):
            with tempfile.TemporaryDirectory() as folder:
                decompressed = Path(folder) / "plain.mha"
                decompressed.write_bytes(_decompressed(file, header, int(np.prod(size)) * _pixel_bytes(reader)))
                reader.SetFileName(str(decompressed))
                image = reader.Execute()
        else:
            image = reader.Execute()
    except RuntimeError as error:
        _require_grid(file, ending, header)
        reason = str(error).strip().splitlines()[-1].replace(str(file), file.name)
        problem = "its voxel data are truncated" if reason == "Reason: Success" else reason
        raise InvalidInputError(f"{file.name} cannot be read as {ending}: {problem}") from error
    values = SimpleITK.GetArrayViewFromImage(image)
    if not np.issubdtype(values.dtype, np.number) or np.iscomplexobj(values):
        raise InvalidInputError(f"{file.name} contains values that are not real numbers; expected Hounsfield units")
    direction = np.array(image.GetDirection()).reshape(3, 3)
    if ending.startswith(".m"):
        _require_one_orientation(file, header, direction)
    affine = np.eye(4)
    affine[:3, :3] = direction * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    volume = axial_volume(file.name, values, affine, identifiers)
    return replace(volume, remarks=(*volume.remarks, *remarks))


def _require_one_orientation(file: Path, header: bytes, direction: Float64) -> None:
    """Raises ``InvalidInputError`` if AnatomicalOrientation, which ITK ignores, contradicts a MetaImage's matrix.

    Some writers use the letters of the sides that axes end at instead of those that they start from; if there is a
    matrix, both conventions are accepted.
    """
    stated = re.search(rb"^\s*AnatomicalOrientation\s*[=:]\s*([RLAPIS]{3})\s*$", header, re.M | re.I)
    if stated is None:
        return
    letters = stated[1].decode().upper()
    agreement = [
        direction[axis, n] * sign for n, (axis, sign) in enumerate(_LPS_DIRECTION[letter] for letter in letters)
    ]
    if min(agreement) < 0.5 and (max(agreement) > -0.5 or not re.search(_MATRIX, header, re.M)):
        raise InvalidInputError(
            f"{file.name} states AnatomicalOrientation = {letters} with a different TransformMatrix or none, so left "
            "and right are unknown; state only the correct orientation, as TransformMatrix"
        )


def _require_grid(file: Path, ending: str, header: bytes) -> list[str]:
    """Raises ``InvalidInputError`` if a header lacks a spacing or orientation that readers would silently assume.

    Returns the remarks on values that the format lets readers assume.
    """
    if ending.startswith(".m"):
        if not re.search(rb"^\s*Element(Spacing|Size)\s*[=:]", header, re.M):
            raise InvalidInputError(f"{file.name} states no ElementSpacing, which is needed to measure")
        orientation = re.search(_MATRIX, header, re.M) or re.search(
            rb"^\s*AnatomicalOrientation\s*[=:]\s*RAI", header, re.M
        )
        return [*([] if orientation else [ASSUMED_LPS]), *([] if re.search(_ORIGIN, header, re.M) else [NO_ORIGIN])]
    if (space := re.search(rb"^space *:(.*)", header, re.I | re.M)) is None or space[1].strip().lower() not in _SPACES:
        raise InvalidInputError(
            f"{file.name} does not state its orientation (its header's `space` is none of LPS, RAS and LAS), so left "
            "and right are unknown; convert the DICOM series again"
        )
    units = re.search(rb"^space units *:(.*)", header, re.I | re.M)
    if units and set(re.findall(rb'"(.*?)"', units[1])) - {b"mm", b""}:
        raise InvalidInputError(
            f"{file.name} is in units other than mm ({units[1].decode('utf-8', 'replace').strip()}); convert it to mm"
        )
    grid = {field.lower() for field in re.findall(rb"^(space directions|spacings) *:", header, re.I | re.M)}
    if grid != {b"space directions"}:
        raise InvalidInputError(
            f"{file.name} must state `space directions`, and no `spacings`, because NRRD does not allow `spacings` "
            "together with `space`; convert the DICOM series again"
        )
    return [] if re.search(rb"^space origin *:", header, re.I | re.M) else [NO_ORIGIN]


def _pixel_bytes(reader: SimpleITK.ImageFileReader) -> int:
    import SimpleITK

    return int(SimpleITK.Image([1, 1], reader.GetPixelID()).GetSizeOfPixelComponent())


def _decompressed(file: Path, header: bytes, size: int) -> bytes:
    """A compressed MetaImage as an uncompressed one. Raises ``InvalidInputError`` if it is truncated or damaged.

    ITK returns uninitialised memory for voxels that it cannot decompress.
    """
    line = re.search(rb"^\s*ElementDataFile\s*[=:]\s*(.*?)\r?\n", header, re.M)
    if line is None:
        raise InvalidInputError(f"{file.name} has no ElementDataFile that says where its voxels are; convert it again")
    named = line[1].strip().decode("utf-8", "replace")
    is_local = named.upper() == "LOCAL"
    decompressor = zlib.decompressobj(wbits=47)
    try:
        with (file if is_local else file.parent / named).open("rb") as stream:
            stream.seek(line.end() if is_local else 0)
            voxels = decompressor.decompress(stream.read(), size + 1)
    except zlib.error:
        voxels = b""
    if len(voxels) != size or not decompressor.eof:
        raise InvalidInputError(f"{file.name}: its compressed voxels are truncated or damaged; send it again")
    kept = re.sub(rb"^\s*CompressedData.*\n", b"", header[: line.start()], flags=re.M)
    return kept.rstrip(b"\r\n") + b"\nElementDataFile = LOCAL\n" + voxels


def _identifiers(stem: str) -> dict[str, str]:
    """The SeriesInstanceUID, if the file is named after it as in LUNA16 (PS3.5 9.1). No other file name is kept."""
    return {"SeriesInstanceUID": stem} if re.fullmatch(r"[0-9]+(\.[0-9]+){5,}", stem) and len(stem) <= 64 else {}


def _checked_header(file: Path, ending: str) -> bytes:
    """The header of a NRRD or MetaImage file. Its data file, if it names one, must be in the same folder.

    The check is stricter than the readers: any text in the header that could be read as a file name is checked. The
    readers also accept such a name after the part that is checked, so the header must end within it.
    """
    with file.open("rb") as content:
        header = content.read(_MAX_HEADER_BYTES)
    is_whole_file = file.stat().st_size <= _MAX_HEADER_BYTES
    if ending.startswith(".n"):
        header, blank, _ = header.replace(b"\r\n", b"\n").partition(b"\n\n")
        found = re.findall(rb"data ?file\s*:(.*)", header, re.I)
        # Without a blank line at the end of the header, ITK parses voxels as header lines, and crashes with SIGSEGV.
        ends = bool(blank) or (bool(found) and is_whole_file)
        is_complete = ends and not re.search(rb"[\0-\x08\x0b-\x1f]", header)
    else:
        found = re.findall(rb"ElementDataFile[\s=:]*(.*)", header, re.I)
        is_complete = bool(found) and (is_whole_file or not _has_later_data_file(file))
    if not is_complete:
        raise InvalidInputError(f"{file.name} has no readable header in its first {_MAX_HEADER_BYTES >> 10} KiB")
    for value in found:
        named = value.strip().decode("utf-8", "replace")
        if named.upper() == "LOCAL" and ending.startswith(".m"):
            continue
        is_file_list = named.upper().startswith("LIST") or "%" in named
        if is_file_list or Path(named).name != named or not (file.parent / named).is_file():
            raise InvalidInputError(
                f"{file.name} keeps its voxels in {named!r}; provide that file with it, or a single-file image"
            )
    return header


def _has_later_data_file(metaimage: Path) -> bool:
    """Whether the field that ends a MetaImage's header occurs after the checked part.

    MetaIO reads on to it if it takes the field in the checked part for something else, such as a part of a comment.
    """
    with metaimage.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"ElementDataFile", _MAX_HEADER_BYTES - _MAX_FIELD_BYTES) >= 0


READERS: Mapping[str, Callable[[Path, dict[str, str]], CTVolume]] = {
    ".nrrd": partial(_read_itk, "NrrdImageIO"),
    ".nhdr": partial(_read_itk, "NrrdImageIO"),
    ".mha": partial(_read_itk, "MetaImageIO"),
    ".mhd": partial(_read_itk, "MetaImageIO"),
    ".nii": read_nifti,
    ".nii.gz": read_nifti,
}
"""The reader of each file name ending. It takes the file, and the DICOM identifiers that its name contains."""
