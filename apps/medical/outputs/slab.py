"""The volume for a viewer: the lungs' box at the scan's own slices, small enough to send."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.medical.adapters.nifti import nifti
from apps.medical.outputs.volume_archive import read_volume_archive, volume_archive
from apps.medical.types import CTVolume, Findings

SLAB = "slab.nii.gz"
MAX_VOXELS = 24_000_000
STEP_HU = 4
MARGIN_MM = 12.0


def slab(volume: CTVolume, findings: Findings) -> CTVolume:
    """The scan in and around the lungs' box; HU are cut to -1024..1020 in steps of 4, which no window shows.

    Above ``MAX_VOXELS`` every second row and column, then every second slice, are averaged into one.
    """
    low, high = np.zeros(3, int), np.array(volume.size_ijk)
    if findings.lung_box_lps_mm is not None:
        corners = volume.to_index_ijk(np.array(findings.lung_box_lps_mm).reshape(2, 3))
        margin = MARGIN_MM / np.array(volume.spacing_mm)
        low = np.maximum(np.floor(corners.min(axis=0) - margin), 0).astype(int)
        high = np.minimum(np.ceil(corners.max(axis=0) + margin) + 1, volume.size_ijk).astype(int)
        # All slices stay, so that their numbers are the scan's.
        low[2], high[2] = 0, volume.size_ijk[2]
    part = volume.voxels_zyx[low[2] : high[2], low[1] : high[1], low[0] : high[0]]
    factor = np.ones(3, int)
    while part.size / np.prod(factor) > MAX_VOXELS:
        factor = factor * (2, 2, 1) if factor[0] <= factor[2] else factor * (1, 1, 2)
    if factor.max() > 1:
        size = np.array(part.shape[::-1]) // factor
        cut = part[: size[2] * factor[2], : size[1] * factor[1], : size[0] * factor[0]]
        blocks = cut.reshape(size[2], factor[2], size[1], factor[1], size[0], factor[0])
        part = blocks.mean(axis=(1, 3, 5), dtype=np.float32)
    spacing = np.array(volume.spacing_mm) * factor
    origin = volume.to_lps_mm(low + (factor - 1) / 2)
    if part.dtype == np.int16:  # no float of every voxel: a table says of each value what it becomes
        every = np.arange(-(1 << 15), 1 << 15, dtype=np.float32)
        voxels = _stepped(every)[part.astype(np.int32) + (1 << 15)]
    else:
        voxels = _stepped(part)
    return CTVolume(
        voxels_zyx=np.ascontiguousarray(voxels),
        spacing_mm=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        origin_lps_mm=(float(origin[0]), float(origin[1]), float(origin[2])),
        direction=volume.direction,
    )


def _stepped(values: NDArray[Any]) -> NDArray[np.int16]:
    stepped: NDArray[np.int16] = (np.clip(np.rint(values / STEP_HU), -256, 255) * STEP_HU).astype(np.int16)
    return stepped


def slab_source(volume: CTVolume, findings: Findings) -> bytes:
    """``slab`` as NumPy's archive, in half the bytes of ``.nii.gz`` and of the time: a server keeps it for long."""
    made = slab(volume, findings)
    return volume_archive(made, deflated=_deflated(made.voxels_zyx))


def slab_volume(source: bytes) -> CTVolume:
    """The volume that ``slab_source`` holds."""
    return read_volume_archive(source, "deflated", _inflated)


def slab_file(source: bytes) -> bytes:
    """What ``slab_source`` holds as ``.nii.gz``."""
    return nifti(slab_volume(source))


def _deflated(voxels_zyx: NDArray[np.int16]) -> bytes:
    """The 512 values as differences along the rows, small ones first: their low bytes, then the ninth bits; deflated.

    What remains is noise, in which deflate finds no repetitions, only values that are frequent.
    """
    levels = voxels_zyx // STEP_HU
    levels[:, :, 1:] = np.diff(levels, axis=2)
    wrapped = ((levels + 256) & 511) - 256
    folded = (wrapped << 1) ^ (wrapped >> 15)
    deflate = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    parts = (folded.astype(np.uint8), np.packbits(folded > 255))
    return b"".join(deflate.compress(part.tobytes()) for part in parts) + deflate.flush()


def _inflated(deflated: bytes, size_zyx: tuple[int, int, int]) -> NDArray[np.int16]:
    number = math.prod(size_zyx)
    content = np.frombuffer(zlib.decompress(deflated), np.uint8)
    high = np.unpackbits(content[number:], count=number).astype(np.int16)
    folded = (content[:number].astype(np.int16) | (high << 8)).reshape(size_zyx)
    levels = np.cumsum((folded >> 1) ^ -(folded & 1), axis=2, dtype=np.int16)
    voxels: NDArray[np.int16] = (((levels + 256) & 511) - 256) * STEP_HU
    return voxels
