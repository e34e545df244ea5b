"""Whole chests without nodules, painted once and kept: training patches are cut from them, turned and resized.

A chest is a folder in the user's cache with the anatomy on the network's grid, uint8 over ``WINDOW_HU``, without noise
or kernel, and the same at twice the spacing. Nodules and the scanner come anew into each patch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from apps.medical.datasets.patches import scale_to_window
from apps.medical.datasets.synth.anatomy import Anatomy, draw
from apps.medical.datasets.synth.fields import Array, Coordinates, open_grid
from apps.medical.datasets.synth.frame import Frame
from apps.medical.datasets.synth.tissue import tissue
from shared.data.build_cache import get_or_build, packs, parallel_map

WINDOW_HU = (-1024.0, 500.0)
MARGIN_MM = 22.0
VERSION = 1
SLAB = 8


@dataclass(frozen=True, slots=True)
class PackedChest:
    """A chest as it was packed. ``images`` by coarseness; voxel (0, 0, 0) of each begins at ``low_mm``."""

    anatomy: Anatomy
    images: dict[int, NDArray[np.uint8]]
    low_mm: Array
    spacing_mm: tuple[float, float, float]

    def cut(self, frame: Frame, grid: Coordinates, coarse: int) -> Array:
        """The chest in HU on ``grid`` in the frame; beyond the pack its outermost voxels go on."""
        stored = self.images[coarse]
        spacing = np.array(self.spacing_mm, np.float32) * coarse
        axes = [axis.ravel() for axis in grid]
        if frame.upright:
            index = [
                np.rint((axis + m - low) / step - 0.5).astype(int).clip(0, n - 1)
                for axis, m, low, step, n in zip(axes, frame.middle_mm, self.low_mm, spacing, stored.shape, strict=True)
            ]
            part = stored[tuple(slice(i[0], i[-1] + 1) for i in index)]
            values = part[np.ix_(*(i - i[0] for i in index))].astype(np.float32)
        else:
            at = [
                (along - low) / step - 0.5
                for along, low, step in zip(frame.to_chest(*grid), self.low_mm, spacing, strict=True)
            ]
            first = [int(np.clip(np.floor(a.min()), 0, n - 1)) for a, n in zip(at, stored.shape, strict=True)]
            last = [int(np.clip(np.ceil(a.max()), f, n - 1)) for a, f, n in zip(at, first, stored.shape, strict=True)]
            part = stored[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))].astype(np.float32)
            index_at = np.stack(np.broadcast_arrays(*(a - f for a, f in zip(at, first, strict=True))))
            values = ndimage.map_coordinates(part, index_at, np.float32, order=1, mode="nearest")
        low, high = WINDOW_HU
        return np.asarray(values * np.float32((high - low) / 255) + np.float32(low), np.float32)


def pack_chests(seed: int, count: int, spacing_mm: tuple[float, float, float]) -> None:
    """Packs chests 0 to ``count`` that are not packed yet, by all processors: half a minute of one for each."""
    waiting = [(seed, n, spacing_mm) for n in range(count) if not (packs() / _name(seed, n, spacing_mm)).is_dir()]
    parallel_map(_pack, waiting, "packing synthetic chests")


@lru_cache(maxsize=1024)
def open_chest(seed: int, number: int, spacing_mm: tuple[float, float, float]) -> PackedChest:
    """Chest ``number`` of a series, packed first where it is not."""
    folder = get_or_build(_name(seed, number, spacing_mm), lambda aside: _make(seed, number, spacing_mm, aside))
    images = {coarse: np.load(folder / f"{coarse}.npy", mmap_mode="r") for coarse in (1, 2)}
    anatomy = draw(np.random.default_rng((seed, number, 0)))
    return PackedChest(anatomy, images, _ends(anatomy)[0], spacing_mm)


def _name(seed: int, number: int, spacing_mm: tuple[float, float, float]) -> str:
    content = json.dumps([VERSION, seed, number, spacing_mm]).encode()
    return f"chest-{hashlib.sha256(content).hexdigest()[:16]}"


def _pack(seed: int, number: int, spacing_mm: tuple[float, float, float]) -> None:
    get_or_build(_name(seed, number, spacing_mm), lambda aside: _make(seed, number, spacing_mm, aside))


def _ends(anatomy: Anatomy) -> tuple[Array, Array]:
    """The corners of what is packed: the rib cage and a margin."""
    wide, deep = anatomy.half_width + MARGIN_MM, anatomy.half_depth + MARGIN_MM
    low = np.array([-wide, -deep, anatomy.base - 50], np.float32)
    return low, np.array([wide, deep + anatomy.lean, max(anatomy.top) + MARGIN_MM], np.float32)


def _make(seed: int, number: int, spacing_mm: tuple[float, float, float], folder: Path) -> None:
    random = np.random.default_rng((seed, number, 1))
    anatomy = draw(np.random.default_rng((seed, number, 0)))
    low, high = _ends(anatomy)
    # An even number, so that pairs of voxels are one of the coarse image.
    count = 2 * np.ceil((high - low) / spacing_mm / 2).astype(int)
    axes = [low[n] + np.float32(spacing_mm[n]) * (np.arange(count[n], dtype=np.float32) + 0.5) for n in range(3)]
    image = np.empty(tuple(count), np.uint8)
    for start, grid in _slabs(axes):
        painted, _ = tissue(anatomy, grid, random)
        image[:, :, start : start + SLAB] = scale_to_window(painted, WINDOW_HU)
    np.save(folder / "1.npy", image)
    x, y, z = (n // 2 for n in count)
    paired = image.reshape(x, 2, y, 2, z, 2).mean(axis=(1, 3, 5), dtype=np.float32)
    np.save(folder / "2.npy", np.rint(paired).astype(np.uint8))


def _slabs(axes: list[Array]) -> Iterator[tuple[int, Coordinates]]:
    for start in range(0, len(axes[2]), SLAB):
        yield start, open_grid(axes[0], axes[1], axes[2][start : start + SLAB])
