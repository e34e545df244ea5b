"""A volume as NumPy's archive: its grid, and its voxels as whoever writes it packs them."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.medical.types import CTVolume


def volume_archive(volume: CTVolume, **packed: bytes) -> bytes:
    """The archive of a volume whose voxels are ``packed``, under a name that says how; no identifier, name or date."""
    content = io.BytesIO()
    held: dict[str, Any] = {name: np.frombuffer(one, np.uint8) for name, one in packed.items()}
    np.savez(
        content,
        size_zyx=volume.voxels_zyx.shape,
        spacing_mm=volume.spacing_mm,
        origin_lps_mm=volume.origin_lps_mm,
        direction=volume.direction,
        **held,
    )
    return content.getvalue()


def read_volume_archive(
    content: bytes, name: str, unpack: Callable[[bytes, tuple[int, int, int]], NDArray[np.int16]]
) -> CTVolume:
    """The volume in an archive; ``unpack`` takes what is packed as ``name``, and slices, rows and columns."""
    with np.load(io.BytesIO(content), allow_pickle=False) as held:
        size_z, size_y, size_x = (int(size) for size in held["size_zyx"])
        return CTVolume(
            voxels_zyx=unpack(held[name].tobytes(), (size_z, size_y, size_x)),
            spacing_mm=_three(held["spacing_mm"]),
            origin_lps_mm=_three(held["origin_lps_mm"]),
            direction=held["direction"],
        )


def _three(values: NDArray[Any]) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z
