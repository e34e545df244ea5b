"""Reads and writes NIfTI files (https://nifti.nimh.nih.gov/nifti-1) of one CT volume.

ITK is not used because it fills the missing part of a truncated file with zeros, and silently picks one of two
orientations that disagree.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from apps.medical.adapters.axial import axial_volume
from apps.medical.types import MAX_VOXELS, CTVolume, Float64, triple
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_UNIT_MM = {1: 1000.0, 3: 0.001}
"""NIfTI's unit codes for metres and micrometres; any other code means millimetres or is unspecified."""

_MAX_DISAGREEMENT_MM = 1.0
"""The maximum distance between corners of the volume placed by sform and by qform."""
_MAX_TRAILING_BYTES = 1 << 24


def read_nifti(file: Path, identifiers: dict[str, str]) -> CTVolume:
    """The volume in a ``.nii`` or ``.nii.gz`` file.

    Raises ``InvalidInputError`` if the file is truncated or damaged, or does not state its orientation.
    """
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        with _opened(file) as stream, np.errstate(all="ignore"):
            header = _header(file, stream)
            shape = _shape(file, header)
            stored = _stored(file, stream, header, shape)
            affine = _affine(file, header, shape)
            slope, shift = header.get_slope_inter()
    except (EOFError, zlib.error, OSError, ImageFileError, HeaderDataError, ValueError, KeyError) as error:
        raise InvalidInputError(
            f"{file.name} cannot be read as NIfTI ({error}); send it again, or repeat the conversion"
        ) from error
    values = stored.transpose(2, 1, 0)
    if slope not in (None, 1.0) or shift:
        values = values * np.float32(slope or 1.0) + np.float32(shift or 0.0)
    return axial_volume(file.name, values, RAS_TO_LPS @ affine, identifiers)


def _opened(file: Path) -> IO[bytes]:
    # Detected by content, because files are often compressed or decompressed without being renamed.
    with file.open("rb") as content:
        is_gzip = content.read(2) == b"\x1f\x8b"
    return cast("IO[bytes]", gzip.open(file)) if is_gzip else file.open("rb")


def _header(file: Path, stream: IO[bytes]) -> Nifti1Header:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    size = stream.read(4)
    kind: Any = Nifti2Header if size in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else Nifti1Header
    block = size + stream.read(kind.sizeof_hdr - 4)
    if len(block) < kind.sizeof_hdr:
        raise EOFError("the file ends within the header")
    header = kind(block, check=False)
    if bytes(header["magic"])[:3] not in (b"n+1", b"n+2"):
        raise InvalidInputError(f"{file.name} is not a single-file NIfTI image; convert it to .nii.gz")
    return cast("Nifti1Header", header)


def _shape(file: Path, header: Nifti1Header) -> tuple[int, int, int]:
    shape = [int(n) for n in header.get_data_shape()]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) != 3 or min(shape) < 2:
        raise InvalidInputError(f"{file.name} is not one volume: its size is {tuple(shape)}; provide a single 3D CT")
    if np.prod([float(n) for n in shape]) > MAX_VOXELS:
        raise InvalidInputError(f"{file.name} states {tuple(shape)} voxels, which is too large for a CT", status=413)
    return triple(shape)


def _stored(file: Path, stream: IO[bytes], header: Nifti1Header, shape: tuple[int, int, int]) -> NDArray[Any]:
    """Stored values, shape ``shape``. Reads to the end of the stream, which verifies the checksum of a gzip file."""
    dtype = header.get_data_dtype()
    if dtype.fields is not None or dtype.kind not in "iuf":
        raise InvalidInputError(
            f"{file.name} has the NIfTI data type {header['datatype']}, which is not a real number; provide a CT in HU"
        )
    skipped = int(header.get_data_offset()) - header.sizeof_hdr
    if skipped < 0 or len(stream.read(skipped)) < skipped:
        raise EOFError("the file ends before the voxels")
    size = int(np.prod(shape)) * dtype.itemsize
    content = stream.read(size)
    if len(content) < size:
        raise EOFError(f"the file ends after {len(content)} of {size} bytes of voxels")
    trailing = 0
    while chunk := stream.read(1 << 20):
        trailing += len(chunk)
        if trailing > _MAX_TRAILING_BYTES:
            raise InvalidInputError(f"{file.name} has too much data after its one volume; provide a single 3D CT")
    return np.frombuffer(content, dtype).reshape(shape, order="F")


def _affine(file: Path, header: Nifti1Header, shape: tuple[int, int, int]) -> Float64:
    """The 4x4 affine from voxel indices to RAS in mm."""
    affines = [affine for affine, code in (header.get_sform(coded=True), header.get_qform(coded=True)) if code]
    if not affines:
        raise InvalidInputError(
            f"{file.name} does not state its orientation (its sform and qform codes are 0), so left and right are "
            "unknown; convert the DICOM series again"
        )
    corners = np.array([[i, j, k, 1] for i in (0, shape[0]) for j in (0, shape[1]) for k in (0, shape[2])], float)
    unit = _UNIT_MM.get(int(header["xyzt_units"]) & 7, 1.0)
    disagreement_mm = np.abs(corners @ (affines[0] - affines[-1]).T).max() * unit
    if not disagreement_mm <= _MAX_DISAGREEMENT_MM:
        raise InvalidInputError(
            f"{file.name} states two orientations, {disagreement_mm:.0f} mm apart (sform and qform); keep only the "
            "correct one"
        )
    stated = np.abs(np.array(header.get_zooms()[:3], np.float64))
    # Some writers leave pixdim at 1 when they write an affine.
    if not np.all(stated == 1) and not np.allclose(stated, np.linalg.norm(affines[0][:3, :3], axis=0), rtol=0.05):
        raise InvalidInputError(
            f"{file.name} states two spacings (pixdim and sform), so sizes are unknown; repeat the conversion"
        )
    return np.asarray(np.diag([unit, unit, unit, 1.0]) @ affines[0], np.float64)


def nifti(volume: CTVolume) -> bytes:
    """The volume as a compressed NIfTI-1 file, in RAS, with the origin at the centre of the first voxel."""
    header = nifti_header(np.int16, volume.size_ijk, volume.spacing_mm, volume.origin_lps_mm, volume.direction)
    return gzip.compress(header + volume.voxels_zyx.astype("<i2", copy=False).tobytes(), compresslevel=1, mtime=0)


def nifti_header(
    dtype: DTypeLike, size_ijk: Sequence[int], spacing_mm: Sequence[float], origin_lps_mm: ArrayLike, direction: Float64
) -> bytes:
    """The header of a NIfTI-1 file. The voxels follow it, little-endian, with i varying fastest."""
    from nibabel.nifti1 import Nifti1Header

    index_to_lps = np.eye(4)
    index_to_lps[:3, :3] = direction * spacing_mm
    index_to_lps[:3, 3] = origin_lps_mm
    header = Nifti1Header(endianness="<")
    header.set_data_dtype(dtype)
    header.set_data_shape(size_ijk)
    header.set_zooms(spacing_mm)
    header.set_sform(RAS_TO_LPS @ index_to_lps, code="aligned")
    header.set_qform(RAS_TO_LPS @ index_to_lps, code="unknown")
    header.set_xyzt_units("mm")
    header["vox_offset"] = 352
    return bytes(header.binaryblock) + bytes(4)  # no header extensions
