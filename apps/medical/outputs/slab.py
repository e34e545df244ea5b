"""The volume for the viewer: the scan cropped to the lungs, small enough to send to a browser."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.medical.adapters.nifti import nifti
from apps.medical.outputs.volume_archive import read_volume_archive, volume_archive
from apps.medical.types import CTVolume, Findings, triple

SLAB = "slab.nii.gz"
MAX_VOXELS = 24_000_000
STEP_HU = 4
MARGIN_MM = 12.0


def slab(volume: CTVolume, findings: Findings) -> CTVolume:
    """The scan cropped to the lungs' box with a margin; HU are clipped to -1024..1020 and quantised in steps of 4.

    No display window makes these steps visible. Above ``MAX_VOXELS``, averages of blocks of 2 x 2 pixels, then
    of 2 slices, then again of 2 x 2 pixels and so on replace them until the volume is small enough.
    """
    low, high = np.zeros(3, int), np.array(volume.size_ijk)
    if findings.lung_box_lps_mm is not None:
        corners = volume.to_index_ijk(np.array(findings.lung_box_lps_mm).reshape(2, 3))
        margin = MARGIN_MM / np.array(volume.spacing_mm)
        low = np.maximum(np.floor(corners.min(axis=0) - margin), 0).astype(int)
        high = np.minimum(np.ceil(corners.max(axis=0) + margin) + 1, volume.size_ijk).astype(int)
        # All slices are kept, so that their numbers are those of the scan.
        low[2], high[2] = 0, volume.size_ijk[2]
    part = volume.voxels_zyx[low[2] : high[2], low[1] : high[1], low[0] : high[0]]
    factor = np.ones(3, int)
    while part.size / np.prod(factor) > MAX_VOXELS:
        factor = factor * (2, 2, 1) if factor[0] <= factor[2] else factor * (1, 1, 2)
    if factor.max() > 1:
        size = np.array(part.shape[::-1]) // factor
        cropped = part[: size[2] * factor[2], : size[1] * factor[1], : size[0] * factor[0]]
        blocks = cropped.reshape(size[2], factor[2], size[1], factor[1], size[0], factor[0])
        part = blocks.mean(axis=(1, 3, 5), dtype=np.float32)
    spacing = np.array(volume.spacing_mm) * factor
    origin = volume.to_lps_mm(low + (factor - 1) / 2)
    if part.dtype == np.int16:  # a lookup table avoids a float copy of the volume
        all_values = np.arange(-(1 << 15), 1 << 15, dtype=np.float32)
        voxels = _quantised(all_values)[part.astype(np.int32) + (1 << 15)]
    else:
        voxels = _quantised(part)
    return CTVolume(
        voxels_zyx=np.ascontiguousarray(voxels),
        spacing_mm=triple(spacing.tolist()),
        origin_lps_mm=triple(origin.tolist()),
        direction=volume.direction,
    )


def _quantised(values: NDArray[Any]) -> NDArray[np.int16]:
    quantised: NDArray[np.int16] = (np.clip(np.rint(values / STEP_HU), -256, 255) * STEP_HU).astype(np.int16)
    return quantised


def slab_source(volume: CTVolume, findings: Findings) -> bytes:
    """``slab`` as a NumPy archive, which a server stores: half the size of ``.nii.gz``, in half the time."""
    cropped = slab(volume, findings)
    return volume_archive(cropped, deflated=_compressed(cropped.voxels_zyx))


def slab_volume(source: bytes) -> CTVolume:
    """The volume in the archive of ``slab_source``."""
    return read_volume_archive(source, "deflated", _decompressed)


def slab_file(source: bytes) -> bytes:
    """The volume in the archive of ``slab_source`` as ``.nii.gz``."""
    return nifti(slab_volume(source))


def _compressed(voxels_zyx: NDArray[np.int16]) -> bytes:
    """Compresses voxels with 512 levels: differences along rows, zigzag-encoded, as low bytes, then packed ninth bits.

    The differences are mostly noise, without repetitions, so deflate uses run-length matching and Huffman coding only.
    """
    levels = voxels_zyx // STEP_HU
    levels[:, :, 1:] = np.diff(levels, axis=2)
    wrapped = ((levels + 256) & 511) - 256
    zigzag = (wrapped << 1) ^ (wrapped >> 15)
    deflate = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    parts = (zigzag.astype(np.uint8), np.packbits(zigzag > 255))
    return b"".join(deflate.compress(part.tobytes()) for part in parts) + deflate.flush()


def _decompressed(compressed: bytes, size_zyx: tuple[int, int, int]) -> NDArray[np.int16]:
    count = math.prod(size_zyx)
    content = np.frombuffer(zlib.decompress(compressed), np.uint8)
    high = np.unpackbits(content[count:], count=count).astype(np.int16)
    zigzag = (content[:count].astype(np.int16) | (high << 8)).reshape(size_zyx)
    levels = np.cumsum((zigzag >> 1) ^ -(zigzag & 1), axis=2, dtype=np.int16)
    voxels: NDArray[np.int16] = (((levels + 256) & 511) - 256) * STEP_HU
    return voxels
