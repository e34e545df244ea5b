"""The pixels of a CT's images, in Hounsfield units."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from apps.medical.adapters.series import Slice
from shared.errors import InvalidInputError
from shared.threads import compute_threads

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
HIGH_THROUGHPUT = tuple(f"1.2.840.10008.1.2.4.{ending}" for ending in (201, 202, 203))
"""HTJ2K, as AWS HealthImaging and web viewers' archives keep images; GDCM does not read it, OpenJPEG does."""
_HEADER_BYTES = {"1.2.840.10008.1.2": 8, "1.2.840.10008.1.2.1": 12}
"""Of an element's tag and length in implicit and in explicit little endian, before its value."""

_UNITS = ("HU", "HU_MOD", "US")
"""Defined terms of RescaleType (0028,1054) that may be HU; others are electron density, iodine, effective Z."""

_AIR_HU = -1024


def read_hounsfield(slices: Sequence[Slice], voxels_zyx: NDArray[np.int16]) -> None:
    """Writes each image into its place, several at a time. Raises ``InvalidInputError`` for one that cannot be used."""
    # What pydicom warns of cites values. Filters are the process's, so that threads must not set them each.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if any(part.frame is not None for part in slices):
            unpacked: dict[bytes, NDArray[Any]] = {}
            for k, part in enumerate(slices):
                voxels_zyx[k] = slice_hounsfield(part, unpacked)
            return
        with ThreadPoolExecutor(compute_threads(), thread_name_prefix="pixels") as pool:
            for k, image in enumerate(pool.map(lambda part: slice_hounsfield(part, {}), slices)):
                voxels_zyx[k] = image


def integer(part: Slice, keyword: str) -> int | None:
    """A number of the image's header; None where there is none."""
    value = part.header.get(keyword)
    return int(value) if isinstance(value, int) else None


def slice_hounsfield(part: Slice, unpacked: dict[bytes, NDArray[Any]]) -> NDArray[np.int16]:
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
    stored, highest = integer(part, "BitsStored"), integer(part, "HighBit")
    if stored is None or highest != stored - 1:
        raise InvalidInputError(f"{part.file} does not keep its values in the lowest bits; export it again")
    hounsfield = _values(part, unpacked)
    if hounsfield.shape != (integer(part, "Rows"), integer(part, "Columns")):
        raise InvalidInputError(
            f"{part.file} holds {hounsfield.shape} pixels; expected a grey image of Rows by Columns"
        )
    # Scanners mark what lies outside their field with values far below air, or with one that they name.
    if (first := integer(part, "PixelPaddingValue")) is not None:
        hounsfield[_is_padding(part, first, hounsfield)] = _AIR_HU
    if hounsfield.dtype == np.float32:
        np.rint(hounsfield, out=hounsfield)
    return np.clip(hounsfield, _AIR_HU, 32767, out=hounsfield).astype(np.int16)


def _is_padding(part: Slice, first: int, hounsfield: NDArray[Any]) -> NDArray[np.bool_]:
    """Which pixels hold no image (PS3.3 C.7.5.1.1.2): from PixelPaddingValue to PixelPaddingRangeLimit."""
    header = part.header
    last = integer(part, "PixelPaddingRangeLimit")
    ends = [first, first if last is None else last]
    # Some writers state the value as if pixels had the other sign.
    whole = 1 << (integer(part, "BitsAllocated") or 16)
    if header.get("PixelRepresentation") == 1:
        ends = [value - whole if value >= whole // 2 else value for value in ends]
    else:
        ends = [value + whole if value < 0 else value for value in ends]
    low, high = (value * float(header.RescaleSlope) + float(header.RescaleIntercept) for value in sorted(ends))
    return (hounsfield >= low - 0.25) & (hounsfield <= high + 0.25)


def _values(part: Slice, unpacked: dict[bytes, NDArray[Any]]) -> NDArray[np.float32] | NDArray[np.int32]:
    """The image in HU, an array of its own; of whole numbers where it is stored so, and its scale is."""
    plain = gives_stored_values(part)
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
        if values.dtype.kind in "iu" and values.dtype.itemsize <= 2 and _is_short(slope) and _is_short(intercept):
            whole = values.astype(np.int32)
            return np.add(whole if slope == 1 else whole * int(slope), int(intercept), out=whole)
        return np.asarray(values.astype(np.float32) * slope + intercept, np.float32)
    return np.array(values, np.float32)


def gives_stored_values(part: Slice) -> bool:
    """Whether its decoder gives stored values, not yet rescaled, so that the scale may differ from frame to frame."""
    return part.syntax in UNCOMPRESSED or part.syntax in HIGH_THROUGHPUT


def _is_short(value: float) -> bool:
    """Whether it is a whole number, with which 16 bits make no more than 32."""
    return value.is_integer() and abs(value) < 1 << 14


def _stored(part: Slice) -> NDArray[Any]:
    """Stored values, (rows, columns), or frames of them."""
    from pydicom import dcmread

    content = part.read()
    if (found := _plain(part, content)) is not None:
        return found
    try:
        data = dcmread(BytesIO(content), force=True)
        if part.syntax in HIGH_THROUGHPUT:
            _check_size(part, data)
        return data.pixel_array
    except InvalidInputError:
        raise
    except Exception as error:
        raise InvalidInputError(f"{part.file}: its pixels cannot be read ({error})") from error


def _check_size(part: Slice, data: Dataset) -> None:
    """Refuses HTJ2K, before it is unpacked, whose frames have another size than the header says."""
    from openjpeg.utils import get_parameters
    from pydicom.encaps import generate_frames

    size = integer(part, "Rows"), integer(part, "Columns"), 1
    for frame in generate_frames(data.PixelData, number_of_frames=int(data.get("NumberOfFrames") or 1)):
        found = get_parameters(frame)
        if (found["rows"], found["columns"], found["samples_per_pixel"]) != size:
            raise InvalidInputError(
                f"{part.file}: its compressed image has another size than its header; export it again"
            )


def _plain(part: Slice, content: bytes) -> NDArray[np.integer] | None:
    """The values where they are 16 bits each and lie one after the other; None where pydicom must read them."""
    before, header = _HEADER_BYTES.get(part.syntax), part.header
    rows, columns = integer(part, "Rows") or 0, integer(part, "Columns") or 0
    size = 2 * rows * columns
    if (
        before is None
        or part.pixels_at is None
        or part.frame is not None
        or (integer(part, "BitsAllocated"), integer(part, "BitsStored")) != (16, 16)
        or header.get("PixelRepresentation") not in (0, 1)
        or int.from_bytes(content[part.pixels_at + before - 4 : part.pixels_at + before], "little") != size
        or len(content) < part.pixels_at + before + size
    ):
        return None
    kind = "<i2" if header.get("PixelRepresentation") == 1 else "<u2"
    return np.frombuffer(content, kind, rows * columns, part.pixels_at + before).reshape(rows, columns)


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
