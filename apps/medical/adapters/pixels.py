"""Reads the pixels of CT images as Hounsfield units."""

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
"""HTJ2K, used by AWS HealthImaging and archives of web viewers. OpenJPEG can read it, GDCM cannot."""
_ELEMENT_HEADER_BYTES = {"1.2.840.10008.1.2": 8, "1.2.840.10008.1.2.1": 12}
"""Bytes of tag, VR and length before an element's value, in implicit and in explicit VR little endian."""

_HU_RESCALE_TYPES = ("HU", "HU_MOD", "US")
"""Values of RescaleType (0028,1054) that may mean HU; others mean electron density, iodine, effective Z and so on."""

_AIR_HU = -1024


def read_hounsfield(slices: Sequence[Slice], voxels_zyx: NDArray[np.int16]) -> None:
    """Reads the images into ``voxels_zyx``, several in parallel. Raises ``InvalidInputError`` if one is unusable."""
    # pydicom's warnings print values. Warning filters are global to the process, so threads must not set them.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if any(part.frame is not None for part in slices):
            decoded: dict[bytes, NDArray[Any]] = {}
            for k, part in enumerate(slices):
                voxels_zyx[k] = slice_hounsfield(part, decoded)
            return
        with ThreadPoolExecutor(compute_threads(), thread_name_prefix="pixels") as pool:
            for k, image in enumerate(pool.map(lambda part: slice_hounsfield(part, {}), slices)):
                voxels_zyx[k] = image


def integer(part: Slice, keyword: str) -> int | None:
    """An integer attribute of the image's header; None if it is missing or not an integer."""
    value = part.header.get(keyword)
    return int(value) if isinstance(value, int) else None


def slice_hounsfield(part: Slice, decoded: dict[bytes, NDArray[Any]]) -> NDArray[np.int16]:
    """The image in HU, (rows, columns): stored values times slope plus intercept (PS3.3 C.11.1).

    ``decoded`` caches the pixels of the multi-frame file that was read last. Raises ``InvalidInputError``.
    """
    scale = [part.header.get(keyword) for keyword in ("RescaleSlope", "RescaleIntercept")]
    if not all(isinstance(value, float | int) and np.isfinite(value) for value in scale) or not scale[0]:
        raise InvalidInputError(
            f"{part.file} has no valid rescale slope and intercept, which are needed for Hounsfield units; export the "
            "original series"
        )
    if (unit := str(part.header.get("RescaleType") or "HU")) not in _HU_RESCALE_TYPES:
        raise InvalidInputError(
            f"{part.file} has values in {unit}, not Hounsfield units (RescaleType); provide the original series"
        )
    if (kind := part.header.get("PhotometricInterpretation")) != "MONOCHROME2":
        raise InvalidInputError(f"{part.file} is {kind}, but CT images are MONOCHROME2; export the original series")
    stored, highest = integer(part, "BitsStored"), integer(part, "HighBit")
    if stored is None or highest != stored - 1:
        raise InvalidInputError(
            f"{part.file} does not store its values in the lowest bits (HighBit is not BitsStored - 1); export it again"
        )
    hounsfield = _values(part, decoded)
    if hounsfield.shape != (integer(part, "Rows"), integer(part, "Columns")):
        raise InvalidInputError(
            f"{part.file} has pixels of shape {hounsfield.shape}; expected a greyscale image of Rows by Columns"
        )
    # Scanners fill pixels outside the field of view with values far below air, or with a padding value that they state.
    if (first := integer(part, "PixelPaddingValue")) is not None:
        hounsfield[_is_padding(part, first, hounsfield)] = _AIR_HU
    if hounsfield.dtype == np.float32:
        np.rint(hounsfield, out=hounsfield)
    return np.clip(hounsfield, _AIR_HU, 32767, out=hounsfield).astype(np.int16)


def _is_padding(part: Slice, first: int, hounsfield: NDArray[Any]) -> NDArray[np.bool_]:
    """The mask of padding pixels (PS3.3 C.7.5.1.1.2): from PixelPaddingValue to PixelPaddingRangeLimit, in HU."""
    header = part.header
    last = integer(part, "PixelPaddingRangeLimit")
    ends = [first, first if last is None else last]
    # Some writers state the value as signed for unsigned pixels, or the reverse.
    modulus = 1 << (integer(part, "BitsAllocated") or 16)
    if header.get("PixelRepresentation") == 1:
        ends = [value - modulus if value >= modulus // 2 else value for value in ends]
    else:
        ends = [value + modulus if value < 0 else value for value in ends]
    low, high = (value * float(header.RescaleSlope) + float(header.RescaleIntercept) for value in sorted(ends))
    return (hounsfield >= low - 0.25) & (hounsfield <= high + 0.25)


def _values(part: Slice, decoded: dict[bytes, NDArray[Any]]) -> NDArray[np.float32] | NDArray[np.int32]:
    """The image in HU as a new array: int32 if stored values, slope and intercept are integers, else float32."""
    is_stored = gives_stored_values(part)
    values = decoded.get(part.digest)
    if values is None:
        values = _stored(part) if is_stored else _decompressed(part)
    if part.frame is None:
        values = values if is_stored else values[0]
    else:
        decoded.clear()
        decoded[part.digest] = values
        if values.ndim != 3 or len(values) <= part.frame:
            raise InvalidInputError(f"{part.file} has fewer frames than its header states; export it again")
        values = values[part.frame]
    if is_stored:
        slope, intercept = float(part.header.RescaleSlope), float(part.header.RescaleIntercept)
        if (
            values.dtype.kind in "iu"
            and values.dtype.itemsize <= 2
            and _is_small_integer(slope)
            and _is_small_integer(intercept)
        ):
            integers = values.astype(np.int32)
            return np.add(integers if slope == 1 else integers * int(slope), int(intercept), out=integers)
        return np.asarray(values.astype(np.float32) * slope + intercept, np.float32)
    return np.array(values, np.float32)


def gives_stored_values(part: Slice) -> bool:
    """Whether the decoder returns stored values rather than rescaled ones, so that frames may differ in their scale."""
    return part.syntax in UNCOMPRESSED or part.syntax in HIGH_THROUGHPUT


def _is_small_integer(value: float) -> bool:
    """Whether rescaling 16-bit values with it is exact in int32."""
    return value.is_integer() and abs(value) < 1 << 14


def _stored(part: Slice) -> NDArray[Any]:
    """Stored values, (rows, columns) or (frames, rows, columns)."""
    from pydicom import dcmread

    content = part.read()
    if (pixels := _uncompressed_pixels(part, content)) is not None:
        return pixels
    try:
        data = dcmread(BytesIO(content), force=True)
        if part.syntax in HIGH_THROUGHPUT:
            _check_frame_sizes(part, data)
        return data.pixel_array
    except InvalidInputError:
        raise
    except Exception as error:
        raise InvalidInputError(f"{part.file}: its pixels cannot be read ({error})") from error


def _check_frame_sizes(part: Slice, data: Dataset) -> None:
    """Raises ``InvalidInputError``, before decoding, if HTJ2K frames differ in size from the header."""
    from openjpeg.utils import get_parameters
    from pydicom.encaps import generate_frames

    size = integer(part, "Rows"), integer(part, "Columns"), 1
    for frame in generate_frames(data.PixelData, number_of_frames=int(data.get("NumberOfFrames") or 1)):
        found = get_parameters(frame)
        if (found["rows"], found["columns"], found["samples_per_pixel"]) != size:
            raise InvalidInputError(
                f"{part.file}: the size of its compressed image differs from its header; export it again"
            )


def _uncompressed_pixels(part: Slice, content: bytes) -> NDArray[np.integer] | None:
    """A view of uncompressed 16-bit pixels in the file; None if pydicom must decode them."""
    prefix_bytes, header = _ELEMENT_HEADER_BYTES.get(part.syntax), part.header
    rows, columns = integer(part, "Rows") or 0, integer(part, "Columns") or 0
    size = 2 * rows * columns
    if (
        prefix_bytes is None
        or part.pixels_at is None
        or part.frame is not None
        or (integer(part, "BitsAllocated"), integer(part, "BitsStored")) != (16, 16)
        or header.get("PixelRepresentation") not in (0, 1)
        or int.from_bytes(content[part.pixels_at + prefix_bytes - 4 : part.pixels_at + prefix_bytes], "little") != size
        or len(content) < part.pixels_at + prefix_bytes + size
    ):
        return None
    kind = "<i2" if header.get("PixelRepresentation") == 1 else "<u2"
    return np.frombuffer(content, kind, rows * columns, part.pixels_at + prefix_bytes).reshape(rows, columns)


def _decompressed(part: Slice) -> NDArray[np.float32]:
    """Decodes JPEG, JPEG-LS, JPEG 2000 and RLE with SimpleITK's GDCM, which also rescales to HU.

    Returns shape (frames, rows, columns).
    """
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
                f"{part.file} has a compression (transfer syntax {part.syntax}) that cannot be read; decompress it"
            ) from error
    return np.asarray(SimpleITK.GetArrayFromImage(image), np.float32)
