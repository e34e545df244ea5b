"""A CT series in DICOM (PS3.3 C.8.2, CT Image) to a ``CTVolume``, or a refusal that says what is wrong.

Files may lie in a folder, in a zip archive, or be named one by one. An archive is read in memory: nothing of it is
written to disk under a name of its own choosing.
"""

from __future__ import annotations

import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from apps.medical.data.hounsfield import must_be_hounsfield
from apps.medical.types import CTVolume, Float64
from shared.refusal import Refusal

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MOST_FILES = 6000
MOST_BYTES = 4 << 30
"""What an archive may unpack to."""

MOST_EXPANSION = 200
"""An archive that unpacks to more than this times its size is taken for a bomb."""

LEAST_SLICES = 3
_HARMLESS = (".txt", ".xml", ".json")
_IDENTIFIERS = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
_UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")


@dataclass(frozen=True, slots=True)
class _Slice:
    """One image: what the file is called, its content, and its header."""

    file: str
    content: bytes
    header: Dataset


def read_series(files: Sequence[Path], *, series: str | None = None) -> CTVolume:
    """The one CT series in ``files`` (a folder, a zip archive, or DICOM files).

    ``series`` chooses by SeriesInstanceUID or SeriesNumber where there are several; without it they are refused.
    """
    name = files[0].name if len(files) == 1 else files[0].parent.name
    slices, others = [], []
    for label, content in _contents(files):
        found = _parse(label, content)
        if found is not None:
            slices.append(found)
        elif content[128:132] != b"DICM" and not is_harmless(label):
            others.append(label)
    if not slices:
        inside = f"; it holds {some(others)}" if others and others != [name] else ""
        raise Refusal(f"{name} holds no DICOM image{inside}. Hand in a zip or a folder of one chest CT series")
    if others:
        raise Refusal(f"{name} holds {some(others)} beside DICOM images; take out what is not of the one CT series")
    chosen = _choose(name, [part for part in slices if not _is_scout(part.header)] or slices, series)
    return _assemble(name, chosen)


def is_harmless(label: str) -> bool:
    """Whether a file may lie beside a CT and be passed over: directories of media, notes, what systems hide."""
    parts = PurePosixPath(label.replace("\\", "/")).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return hidden or parts[-1].upper() == "DICOMDIR" or parts[-1].lower().endswith(_HARMLESS)


def some(names: Sequence[str]) -> str:
    """The first few of the names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _contents(files: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file that may be DICOM."""
    for file in files:
        if file.is_dir():
            members = sorted(path for path in file.rglob("*") if path.is_file())
            if len(members) > MOST_FILES:
                raise Refusal(f"{file.name} holds {len(members)} files; hand in the folder of one series")
            for path in members:
                yield path.relative_to(file).as_posix(), path.read_bytes()
        elif zipfile.is_zipfile(file) or file.suffix.lower() == ".zip":
            yield from _unzip(file)
        else:
            yield file.name, file.read_bytes()


def _opened(file: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise Refusal(f"{file.name} cannot be read as a zip ({error}); pack it anew, or send it again") from error


def _unzip(file: Path) -> Iterator[tuple[str, bytes]]:
    with _opened(file) as archive:
        members = [entry for entry in archive.infolist() if not entry.filename.endswith("/") or entry.file_size]
        if len(members) > MOST_FILES:
            raise Refusal(f"{file.name} holds {len(members)} files; pack one series, at most {MOST_FILES}")
        size = sum(entry.file_size for entry in members)
        if size > MOST_BYTES or size > MOST_EXPANSION * max(file.stat().st_size, 1):
            raise Refusal(f"{file.name} would unpack to {size >> 20} MiB; that is no CT series", status=413)
        for entry in members:
            path = PurePosixPath(entry.filename.replace("\\", "/"))
            if not path.parts or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
                raise Refusal(f"{file.name} holds {entry.filename!r}, which points outside the archive; pack it anew")
            if entry.flag_bits & 1:
                raise Refusal(f"{file.name} is encrypted ({entry.filename}); pack it without a password")
        for entry in members:
            try:
                with archive.open(entry) as content:
                    # The directory states the size; the stream may lie.
                    data = content.read(entry.file_size + 1)
            except (zipfile.BadZipFile, zlib.error, NotImplementedError, OSError, EOFError) as error:
                raise Refusal(f"{file.name}: {entry.filename} cannot be unpacked ({error}); pack it anew") from error
            yield entry.filename, data


def _parse(label: str, content: bytes) -> _Slice | None:
    """The image in a file; None where it is not DICOM, or DICOM without pixels (directories, reports)."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = dcmread(BytesIO(content), stop_before_pixels=True)
            if "Rows" not in header or "Columns" not in header:
                return None
    except InvalidDicomError:
        return None
    except Exception as error:
        raise Refusal(f"{label} is a damaged DICOM file: {error}") from error
    return _Slice(label, content, header)


def _is_scout(header: Dataset) -> bool:
    return "LOCALIZER" in [str(part).upper() for part in header.get("ImageType") or []]


def _choose(name: str, slices: list[_Slice], series: str | None) -> list[_Slice]:
    """The slices of the one CT series, or of the one that was asked for."""
    groups: dict[str, list[_Slice]] = {}
    for part in slices:
        groups.setdefault(str(part.header.get("SeriesInstanceUID") or ""), []).append(part)
    if series is not None:
        groups = {uid: g for uid, g in groups.items() if series in (uid, str(g[0].header.get("SeriesNumber", "")))}
        if not groups:
            raise Refusal(f"{name} holds no series {series}; name a SeriesNumber or SeriesInstanceUID that is in it")
    else:
        # Key images and the like lie beside the series in many exports.
        groups = {uid: group for uid, group in groups.items() if len(group) >= LEAST_SLICES} or groups
    if len(groups) > 1:
        listed = "; ".join(_describe(group) for group in groups.values())
        raise Refusal(f"{name} holds {len(groups)} series: {listed}. Hand in one of them, or name it in `series`")
    (chosen,) = groups.values()
    for part in chosen:
        modality = part.header.get("Modality")
        if not modality:
            raise Refusal(
                f"{part.file} has no Modality tag (0008,0060), so that it cannot be known for CT; export anew"
            )
        if modality != "CT":
            raise Refusal(f"{part.file} is {modality}, not CT; hand in the CT series")
        if int(part.header.get("NumberOfFrames") or 1) > 1:
            raise Refusal(f"{part.file} is a multi-frame image; export it as single-frame CT images, or as NIfTI")
    return chosen


def _describe(group: list[_Slice]) -> str:
    header = group[0].header
    text = str(header.get("SeriesDescription") or "without description")
    return f"number {header.get('SeriesNumber', '?')} ({header.get('Modality', '?')}, {text}, {len(group)} images)"


def _assemble(name: str, slices: list[_Slice]) -> CTVolume:
    """Sorts slices along their normal and stacks them."""
    if len(slices) < LEAST_SLICES:
        raise Refusal(f"{name} holds {len(slices)} CT image(s); a volume needs a series of at least {LEAST_SLICES}")
    positions = np.array([_numbers(part, "ImagePositionPatient", 3) for part in slices])
    orientation = np.array([_numbers(part, "ImageOrientationPatient", 6) for part in slices])
    pixel = np.array([_numbers(part, "PixelSpacing", 2) for part in slices])
    shapes = {(int(part.header.Rows), int(part.header.Columns)) for part in slices}
    if len(shapes) > 1 or np.ptp(orientation, axis=0).max() > 1e-3 or np.ptp(pixel, axis=0).max() > 1e-3:
        raise Refusal(f"{name}: its images differ in size, orientation or pixel spacing; hand in one series")
    if pixel.min() <= 0:
        raise Refusal(f"{name} states a PixelSpacing of {pixel.min():g} mm; without it nothing can be measured")
    along_i, along_j = orientation[0, :3], orientation[0, 3:]
    normal = np.cross(along_i, along_j)
    height = positions @ normal
    order = np.argsort(height, kind="stable")
    steps = np.diff(height[order])
    spacing = float(np.median(steps))
    if steps.min() < 0.01:
        twice = slices[order[int(np.argmin(steps))]].file
        raise Refusal(f"{name}: two images lie at one position ({twice}); hand in a single phase or reconstruction")
    if steps.max() > 1.2 * spacing + 0.02 or steps.min() < 0.8 * spacing - 0.02:
        worst = int(np.argmax(np.abs(steps - spacing)))
        raise Refusal(
            f"{name}: slices are missing or uneven; {steps[worst]:.2f} mm lie between {slices[order[worst]].file} and "
            f"{slices[order[worst + 1]].file}, {spacing:.2f} mm elsewhere. Hand in the complete series"
        )
    drift = positions[order[-1]] - positions[order[0]]
    drift = drift - normal * (drift @ normal)
    if np.linalg.norm(drift) > 1.0:
        raise Refusal(f"{name} was taken with a tilted gantry; resample it to a straight grid first")
    voxels = np.stack([_hounsfield(slices[index]) for index in order])
    must_be_hounsfield(name, float(voxels.min()), float(voxels.max()))
    header = slices[order[0]].header
    spacing_ijk = (float(pixel[0, 1]), float(pixel[0, 0]), float((height[order[-1]] - height[order[0]]) / len(steps)))
    return CTVolume(
        voxels_zyx=voxels,
        spacing_mm=spacing_ijk,
        origin_lps_mm=_triple(positions[order[0]]),
        direction=np.stack([along_i, along_j, normal], axis=1),
        identifiers={key: str(header.get(key)) for key in _IDENTIFIERS if header.get(key)},
    )


def _numbers(part: _Slice, keyword: str, count: int) -> list[float]:
    value = part.header.get(keyword)
    if value is None or len(value) != count:
        raise Refusal(f"{part.file} has no usable {keyword}; without geometry nothing can be measured in it")
    return [float(number) for number in value]


def _hounsfield(part: _Slice) -> NDArray[np.int16]:
    """The image in HU: stored values times slope plus intercept (PS3.3 C.11.1)."""
    if "RescaleSlope" not in part.header or "RescaleIntercept" not in part.header:
        raise Refusal(f"{part.file} has no rescale slope and intercept, so that its values are not in Hounsfield units")
    if (kind := part.header.get("PhotometricInterpretation")) != "MONOCHROME2":
        raise Refusal(f"{part.file} is {kind}; a CT image is MONOCHROME2. Export the original series")
    syntax = str(part.header.file_meta.get("TransferSyntaxUID", "")) if hasattr(part.header, "file_meta") else ""
    hounsfield = _rescaled(part) if syntax in _UNCOMPRESSED else _decompressed(part, syntax)
    if hounsfield.shape != (int(part.header.Rows), int(part.header.Columns)):
        raise Refusal(f"{part.file} holds {hounsfield.shape} pixels; expected a grey image of Rows by Columns")
    # Scanners mark what lies outside their field with values far below air.
    return np.clip(np.rint(hounsfield), -1024, 32767).astype(np.int16)


def _rescaled(part: _Slice) -> NDArray[np.float32]:
    from pydicom import dcmread

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = dcmread(BytesIO(part.content))
            stored = dataset.pixel_array
    except Exception as error:
        raise Refusal(f"{part.file}: its pixels cannot be read ({error})") from error
    slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
    return np.asarray(stored.astype(np.float32) * slope + intercept, np.float32)


def _decompressed(part: _Slice, syntax: str) -> NDArray[np.float32]:
    """JPEG, JPEG-LS, JPEG 2000 and RLE, through SimpleITK's GDCM, which also rescales."""
    import SimpleITK

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slice.dcm"
        path.write_bytes(part.content)
        try:
            reader = SimpleITK.ImageFileReader()
            reader.SetImageIO("GDCMImageIO")
            reader.SetFileName(str(path))
            reader.SetOutputPixelType(SimpleITK.sitkFloat32)
            image = reader.Execute()
        except RuntimeError as error:
            raise Refusal(
                f"{part.file} is compressed in a way ({syntax}) that cannot be read; decompress it"
            ) from error
    return np.asarray(SimpleITK.GetArrayFromImage(image), np.float32)[0]


def _triple(vector: Float64) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in vector)
    return x, y, z
