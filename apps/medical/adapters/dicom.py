"""A CT series in DICOM (PS3.3 C.8.2, CT Image) to a ``CTVolume``, or a refusal that says what is wrong."""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.medical.adapters.enhanced import frames, is_enhanced
from apps.medical.adapters.hounsfield import must_be_hounsfield
from apps.medical.adapters.members import Member, first_few, is_harmless, members
from apps.medical.adapters.series import AXIAL, MIN_SLICES, Slice, choose_series, is_scout
from apps.medical.types import MAX_VOXELS, CTVolume, Float64, SourceImage
from shared.errors import InvalidInputError

_IDENTIFIERS = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
_UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
_LOSSY = (
    *("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91"),
    *("1.2.840.10008.1.2.4.93", "1.2.840.10008.1.2.4.203"),
)
"""JPEG baseline and extended, near-lossless JPEG-LS, JPEG 2000, and HTJ2K, which may lose."""

_UNITS = ("HU", "HU_MOD", "US")
"""Defined terms of RescaleType (0028,1054) that may be HU; others are electron density, iodine, effective Z."""

_AIR_HU = -1024
MAX_ACROSS = 8192
_CT_IMAGES = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
_KEYWORDS = (
    *("Modality", "SOPClassUID", "SOPInstanceUID", "PatientID", "ImageType", "ConvolutionKernel", "SeriesDescription"),
    *("InstanceNumber", "SeriesNumber", "NumberOfFrames", "SliceThickness", *_IDENTIFIERS),
    *(
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "Rows",
        "Columns",
        "PhotometricInterpretation",
    ),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RescaleSlope", "RescaleIntercept"),
    *("RescaleType", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)


def read_series(files: Sequence[Path], *, series: str | None = None) -> CTVolume:
    """The one CT series in ``files`` (a folder, a zip archive, DICOM files); for ``series`` see ``choose_series``."""
    name = files[0].name if len(files) == 1 else "the upload"
    with members(files) as found:
        slices: list[Slice] = []
        others = []
        for member in found:
            content = member.read()
            images = _parse(member, content)
            slices.extend(images)
            if not images and content[128:132] != b"DICM" and not is_harmless(member.label):
                others.append(member.label)
        if not slices:
            inside = f"; it holds {first_few(others)}" if others and others != [name] else ""
            raise InvalidInputError(
                f"{name} holds no DICOM image{inside}. Hand in a zip or a folder of one chest CT series"
            )
        if others:
            raise InvalidInputError(
                f"{name} holds {first_few(others)} beside DICOM images; take out what is not of the one CT series"
            )
        slices = _without_copies(slices)
        chosen, remarks = choose_series(name, [part for part in slices if not is_scout(part.header)] or slices, series)
        for part in chosen:
            _must_be_ct(part)
        if len({str(part.header.get("PatientID") or "") for part in chosen}) > 1:
            raise InvalidInputError(
                f"{name}: one series holds images of several patients (PatientID); hand in one patient's"
            )
        return _assemble(name, chosen, remarks)


def _parse(member: Member, content: bytes) -> list[Slice]:
    """The images in a file; none where it is not DICOM, or DICOM without pixels (directories, reports)."""
    from pydicom import config, dcmread
    from pydicom.dataset import Dataset
    from pydicom.errors import InvalidDicomError

    # Its warnings cite values, which may name the patient, on the terminal.
    config.settings.reading_validation_mode = config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Some have lost what stands before the first group.
            header = dcmread(BytesIO(content), stop_before_pixels=True, force=content[:2] in (b"\x02\0", b"\x08\0"))
            # Values are converted when they are first asked for.
            for keyword in _KEYWORDS:
                header.get(keyword)
            for keyword in ("MediaStorageSOPClassUID", "TransferSyntaxUID"):
                getattr(header, "file_meta", {}).get(keyword)
            if "Rows" in header and "Columns" in header:
                # The dataset that was read holds the whole file.
                kept = Dataset()
                for keyword in _KEYWORDS:
                    if keyword in header:
                        kept[keyword] = header[keyword]
                syntax = str(getattr(header, "file_meta", {}).get("TransferSyntaxUID") or "")
                image = Slice(member.label, member.read, hashlib.sha256(content).digest(), syntax, kept)
                return frames(image, header) if is_enhanced(header) else [image]
    except InvalidDicomError:
        return []
    except Exception as error:
        raise InvalidInputError(f"{member.label} is a damaged DICOM file ({error}); export it again") from error
    kind = header.get("SOPClassUID") or getattr(header, "file_meta", {}).get("MediaStorageSOPClassUID")
    if not is_harmless(member.label) and (not kind or kind in _CT_IMAGES):
        raise InvalidInputError(f"{member.label} is a DICOM file that ends within its header; export it again")
    return []


def _must_be_ct(part: Slice) -> None:
    modality = part.header.get("Modality")
    if not modality:
        raise InvalidInputError(
            f"{part.file} has no Modality tag (0008,0060), so that it cannot be known for CT; export anew"
        )
    if modality != "CT":
        raise InvalidInputError(f"{part.file} is {modality}, not CT; hand in the CT series")
    if (_integer(part, "NumberOfFrames") or 1) > 1:
        raise InvalidInputError(
            f"{part.file} is a multi-frame image, but no enhanced CT; export it as single-frame CT images, or as NIfTI"
        )


def _without_copies(slices: Sequence[Slice]) -> list[Slice]:
    """Each image once: an export may hold the same file in two folders."""
    return list({(part.digest, part.frame): part for part in slices}.values())


def _assemble(name: str, slices: list[Slice], remarks: Sequence[str]) -> CTVolume:
    """Sorts slices along their normal and stacks them."""
    if len(slices) < MIN_SLICES:
        raise InvalidInputError(
            f"{name} holds {len(slices)} CT image(s); a volume needs a series of at least {MIN_SLICES}"
        )
    positions = np.array([_numbers(part, "ImagePositionPatient", 3) for part in slices])
    orientation = np.array([_numbers(part, "ImageOrientationPatient", 6) for part in slices])
    pixel = np.array([_numbers(part, "PixelSpacing", 2) for part in slices])
    shapes = {(_integer(part, "Rows"), _integer(part, "Columns")) for part in slices}
    if len(shapes) > 1 or np.ptp(orientation, axis=0).max() > 1e-3 or np.ptp(pixel, axis=0).max() > 1e-3:
        raise InvalidInputError(f"{name}: its images differ in size, orientation or pixel spacing; hand in one series")
    if pixel.min() <= 0:
        raise InvalidInputError(
            f"{name} states a PixelSpacing of {pixel.min():g} mm; without it nothing can be measured"
        )
    along_i, along_j = orientation[0, :3], orientation[0, 3:]
    normal = np.cross(along_i, along_j)
    height = positions @ normal
    if not np.allclose([along_i @ along_i, along_j @ along_j, along_i @ along_j], [1, 1, 0], atol=1e-3):
        raise InvalidInputError(
            f"{name} states an ImageOrientationPatient that is no pair of directions; export it again"
        )
    if abs(normal[2]) < AXIAL:
        raise InvalidInputError(f"{name} is not in axial slices; hand in the axial series")
    order = np.argsort(height, kind="stable")
    steps = np.diff(height[order])
    spacing = float(np.median(steps))
    if steps.min() < 0.01:
        twice = slices[order[int(np.argmin(steps))]].file
        raise InvalidInputError(
            f"{name}: two images lie at one position ({twice}); hand in a single phase or reconstruction"
        )
    if steps.max() > 1.2 * spacing + 0.02 or steps.min() < 0.8 * spacing - 0.02:
        worst = int(np.argmax(np.abs(steps - spacing)))
        raise InvalidInputError(
            f"{name}: slices are missing or uneven; {steps[worst]:.2f} mm lie between {slices[order[worst]].file} and "
            f"{slices[order[worst + 1]].file}, {spacing:.2f} mm elsewhere. Hand in the complete series"
        )
    if np.abs(height[order] - np.linspace(height.min(), height.max(), len(slices))).max() > 0.5 * spacing:
        raise InvalidInputError(
            f"{name}: the distance of its slices changes on the way; hand in a series of even slices"
        )
    drift = positions[order[-1]] - positions[order[0]]
    drift = drift - normal * (drift @ normal)
    if np.linalg.norm(drift) > 1.0:
        raise InvalidInputError(f"{name} was taken with a tilted gantry; resample it to a straight grid first")
    rows, columns = shapes.pop()
    if rows is None or columns is None or max(rows, columns) > MAX_ACROSS or rows * columns * len(slices) > MAX_VOXELS:
        raise InvalidInputError(
            f"{name} states {len(slices)} images of {rows} by {columns} pixels, no CT's size", status=413
        )
    voxels = np.empty((len(slices), rows, columns), np.int16)
    scales = {(str(part.header.get("RescaleSlope")), str(part.header.get("RescaleIntercept"))) for part in slices}
    if len(scales) > 1 and any(part.frame is not None and part.syntax not in _UNCOMPRESSED for part in slices):
        raise InvalidInputError(f"{name} is compressed, and its frames differ in their scale; decompress it first")
    unpacked: dict[bytes, NDArray[Any]] = {}
    for k, index in enumerate(order):
        voxels[k] = _hounsfield(slices[index], unpacked)
    must_be_hounsfield(name, voxels)
    header = slices[order[0]].header
    spacing_ijk = (float(pixel[0, 1]), float(pixel[0, 0]), float((height[order[-1]] - height[order[0]]) / len(steps)))
    return CTVolume(
        voxels_zyx=voxels,
        spacing_mm=spacing_ijk,
        origin_lps_mm=_triple(positions[order[0]]),
        direction=np.stack([along_i, along_j, normal], axis=1),
        identifiers={key: str(header.get(key)) for key in _IDENTIFIERS if header.get(key)},
        images=tuple(_source(slices[index], positions[index]) for index in order),
        remarks=(*remarks, *_lossy(slices)),
    )


def _lossy(slices: Sequence[Slice]) -> list[str]:
    """What is to be said where images were compressed with loss, now or at any time before (PS3.3 C.7.6.1.1.5)."""
    lossy = [part for part in slices if part.header.get("LossyImageCompression") == "01" or part.syntax in _LOSSY]
    if not lossy:
        return []
    ratios = [_greatest(part.header.get("LossyImageCompressionRatio")) for part in lossy]
    slopes = [abs(float(part.header.RescaleSlope)) for part in lossy]
    ratio = f", up to {max(ratios):g} to 1" if max(ratios) > 1 else ""
    said = f"{len(lossy)} of {len(slices)} images were compressed with loss{ratio} (0028,2110)"
    enlarged = f"; its errors are enlarged {max(slopes):g} times by the rescale slope" if max(slopes) > 1 else ""
    return [f"{said}: densities in HU are not exact, and small or faint nodules may be gone{enlarged}."]


def _greatest(value: Any) -> float:
    """Of one number or several; 0 where there is none that can be read."""
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    try:
        return max((float(number) for number in values if number not in (None, "")), default=0.0)
    except (TypeError, ValueError):
        return 0.0


def _source(part: Slice, position: Float64) -> SourceImage:
    return SourceImage(
        instance_number=_integer(part, "InstanceNumber"),
        sop_instance_uid=str(part.header.get("SOPInstanceUID") or ""),
        position_lps_mm=_triple(position),
    )


def _numbers(part: Slice, keyword: str, count: int) -> list[float]:
    value = part.header.get(keyword)
    try:
        numbers = [float(number) for number in (value if isinstance(value, Sequence) else [])]
    except ValueError:
        numbers = []
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise InvalidInputError(f"{part.file} has no usable {keyword}; without geometry nothing can be measured in it")
    return numbers


def _integer(part: Slice, keyword: str) -> int | None:
    value = part.header.get(keyword)
    return int(value) if isinstance(value, int) else None


def _hounsfield(part: Slice, unpacked: dict[bytes, NDArray[Any]]) -> NDArray[np.int16]:
    """The image in HU: stored values times slope plus intercept (PS3.3 C.11.1).

    ``unpacked`` keeps the pixels of the one multi-frame file that was read last.
    """
    scale = [part.header.get(keyword) for keyword in ("RescaleSlope", "RescaleIntercept")]
    if not all(isinstance(value, float | int) and np.isfinite(value) for value in scale) or not scale[0]:
        raise InvalidInputError(
            f"{part.file} has no rescale slope and intercept, so that its values are not in Hounsfield units"
        )
    if (unit := str(part.header.get("RescaleType") or "HU")) not in _UNITS:
        raise InvalidInputError(
            f"{part.file} holds values in {unit}, not Hounsfield units (RescaleType); hand in the original series"
        )
    if (kind := part.header.get("PhotometricInterpretation")) != "MONOCHROME2":
        raise InvalidInputError(f"{part.file} is {kind}; a CT image is MONOCHROME2. Export the original series")
    stored, highest = _integer(part, "BitsStored"), _integer(part, "HighBit")
    if stored is None or highest != stored - 1:
        raise InvalidInputError(f"{part.file} does not keep its values in the lowest bits; export it again")
    hounsfield = _values(part, unpacked)
    if hounsfield.shape != (_integer(part, "Rows"), _integer(part, "Columns")):
        raise InvalidInputError(
            f"{part.file} holds {hounsfield.shape} pixels; expected a grey image of Rows by Columns"
        )
    # Scanners mark what lies outside their field with values far below air, or with one that they name.
    hounsfield[_is_padding(part, hounsfield)] = _AIR_HU
    return np.clip(np.rint(hounsfield), _AIR_HU, 32767).astype(np.int16)


def _is_padding(part: Slice, hounsfield: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which pixels hold no image (PS3.3 C.7.5.1.1.2): from PixelPaddingValue to PixelPaddingRangeLimit."""
    header = part.header
    first, last = _integer(part, "PixelPaddingValue"), _integer(part, "PixelPaddingRangeLimit")
    if first is None:
        return np.zeros(hounsfield.shape, bool)
    ends = [first, first if last is None else last]
    # Some writers state the value as if pixels had the other sign.
    whole = 1 << (_integer(part, "BitsAllocated") or 16)
    if header.get("PixelRepresentation") == 1:
        ends = [value - whole if value >= whole // 2 else value for value in ends]
    else:
        ends = [value + whole if value < 0 else value for value in ends]
    low, high = (value * float(header.RescaleSlope) + float(header.RescaleIntercept) for value in sorted(ends))
    return (hounsfield >= low - 0.25) & (hounsfield <= high + 0.25)


def _values(part: Slice, unpacked: dict[bytes, NDArray[Any]]) -> NDArray[np.float32]:
    plain = part.syntax in _UNCOMPRESSED
    values = unpacked.get(part.digest)
    if values is None:
        values = _stored(part) if plain else _decompressed(part)
    if part.frame is None:
        values = values if plain else values[0]
    else:
        unpacked.clear()
        unpacked[part.digest] = values
        if values.ndim != 3 or len(values) <= part.frame:
            raise InvalidInputError(f"{part.file} holds fewer frames than its header tells of; export it again")
        values = values[part.frame]
    if plain:
        slope, intercept = float(part.header.RescaleSlope), float(part.header.RescaleIntercept)
        return np.asarray(values.astype(np.float32) * slope + intercept, np.float32)
    return np.array(values, np.float32)


def _stored(part: Slice) -> NDArray[Any]:
    """Stored values, (rows, columns), or frames of them."""
    from pydicom import dcmread

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dcmread(BytesIO(part.read()), force=True).pixel_array
    except Exception as error:
        raise InvalidInputError(f"{part.file}: its pixels cannot be read ({error})") from error


def _decompressed(part: Slice) -> NDArray[np.float32]:
    """JPEG, JPEG-LS, JPEG 2000 and RLE, through SimpleITK's GDCM, which also rescales; (frames, rows, columns)."""
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slice.dcm"
        path.write_bytes(part.read())
        try:
            reader = SimpleITK.ImageFileReader()
            reader.SetImageIO("GDCMImageIO")
            reader.SetFileName(str(path))
            reader.SetOutputPixelType(SimpleITK.sitkFloat32)
            image = reader.Execute()
        except RuntimeError as error:
            raise InvalidInputError(
                f"{part.file} is compressed in a way ({part.syntax}) that cannot be read; decompress it"
            ) from error
    return np.asarray(SimpleITK.GetArrayFromImage(image), np.float32)


def _triple(vector: Float64) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in vector)
    return x, y, z
