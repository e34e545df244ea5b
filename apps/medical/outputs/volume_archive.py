"""A volume as a NumPy archive (``.npz``): its grid, and its voxels in the caller's compression."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.medical.types import CTVolume, triple


def volume_archive(volume: CTVolume, **compressed: bytes) -> bytes:
    """The archive of a volume, without identifiers, names or dates.

    ``compressed`` holds its compressed voxels, under the name of the compression.
    """
    content = io.BytesIO()
    arrays: dict[str, Any] = {name: np.frombuffer(data, np.uint8) for name, data in compressed.items()}
    np.savez(
        content,
        size_zyx=volume.voxels_zyx.shape,
        spacing_mm=volume.spacing_mm,
        origin_lps_mm=volume.origin_lps_mm,
        direction=volume.direction,
        **arrays,
    )
    return content.getvalue()


def read_volume_archive(
    content: bytes, name: str, decompress: Callable[[bytes, tuple[int, int, int]], NDArray[np.int16]]
) -> CTVolume:
    """The volume in an archive.

    ``name`` is that of the compressed voxels; ``decompress`` takes them and the size (slices, rows, columns).
    """
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return CTVolume(
            voxels_zyx=decompress(arrays[name].tobytes(), triple(arrays["size_zyx"].tolist())),
            spacing_mm=triple(arrays["spacing_mm"].tolist()),
            origin_lps_mm=triple(arrays["origin_lps_mm"].tolist()),
            direction=arrays["direction"],
        )
