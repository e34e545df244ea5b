"""Whole chests without nodules, rendered once and packed. Training patches are cropped from them, rotated and scaled.

A chest is a folder in the user's cache with the anatomy on the network's grid, uint8 over ``WINDOW_HU``, without noise
or kernel, and the same at twice the spacing. Nodules and scanner effects are added to each patch.
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
from apps.medical.datasets.synth.tissue import render_chest
from shared.data.build_cache import get_or_build, packs_folder, parallel_map

WINDOW_HU = (-1024.0, 500.0)
MARGIN_MM = 22.0
VERSION = 1
SLAB_SLICES = 8


@dataclass(frozen=True, slots=True)
class PackedChest:
    """A packed chest. ``images`` has an image for each downsampling factor; each image starts at ``low_mm``."""

    anatomy: Anatomy
    images: dict[int, NDArray[np.uint8]]
    low_mm: Array
    spacing_mm: tuple[float, float, float]

    def resample(self, frame: Frame, grid: Coordinates, coarse: int) -> Array:
        """The chest in HU on ``grid`` in ``frame``, from the image downsampled by ``coarse``, with edge padding."""
        stored = self.images[coarse]
        spacing = np.array(self.spacing_mm, np.float32) * coarse
        axes = [axis.ravel() for axis in grid]
        if frame.is_upright:
            index = [
                np.rint((axis + m - low) / step - 0.5).astype(int).clip(0, n - 1)
                for axis, m, low, step, n in zip(axes, frame.centre_mm, self.low_mm, spacing, stored.shape, strict=True)
            ]
            crop = stored[tuple(slice(i[0], i[-1] + 1) for i in index)]
            values = crop[np.ix_(*(i - i[0] for i in index))].astype(np.float32)
        else:
            at = [
                (position - low) / step - 0.5
                for position, low, step in zip(frame.to_chest(*grid), self.low_mm, spacing, strict=True)
            ]
            first = [int(np.clip(np.floor(a.min()), 0, n - 1)) for a, n in zip(at, stored.shape, strict=True)]
            last = [int(np.clip(np.ceil(a.max()), f, n - 1)) for a, f, n in zip(at, first, stored.shape, strict=True)]
            crop = stored[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))].astype(np.float32)
            index_at = np.stack(np.broadcast_arrays(*(a - f for a, f in zip(at, first, strict=True))))
            values = ndimage.map_coordinates(crop, index_at, np.float32, order=1, mode="nearest")
        low, high = WINDOW_HU
        return np.asarray(values * np.float32((high - low) / 255) + np.float32(low), np.float32)


def pack_chests(seed: int, count: int, spacing_mm: tuple[float, float, float]) -> None:
    """Packs the first ``count`` chests, if missing, on all processors. Each takes one processor half a minute."""
    missing = [
        (seed, n, spacing_mm) for n in range(count) if not (packs_folder() / _name(seed, n, spacing_mm)).is_dir()
    ]
    parallel_map(_pack, missing, "packing synthetic chests")


@lru_cache(maxsize=1024)
def open_chest(seed: int, number: int, spacing_mm: tuple[float, float, float]) -> PackedChest:
    """Opens chest ``number`` of a seed, after packing it if it is missing."""
    folder = get_or_build(
        _name(seed, number, spacing_mm), lambda new_folder: _build(seed, number, spacing_mm, new_folder)
    )
    images = {coarse: np.load(folder / f"{coarse}.npy", mmap_mode="r") for coarse in (1, 2)}
    anatomy = draw(np.random.default_rng((seed, number, 0)))
    return PackedChest(anatomy, images, _bounds(anatomy)[0], spacing_mm)


def _name(seed: int, number: int, spacing_mm: tuple[float, float, float]) -> str:
    content = json.dumps([VERSION, seed, number, spacing_mm]).encode()
    return f"chest-{hashlib.sha256(content).hexdigest()[:16]}"


def _pack(seed: int, number: int, spacing_mm: tuple[float, float, float]) -> None:
    get_or_build(_name(seed, number, spacing_mm), lambda new_folder: _build(seed, number, spacing_mm, new_folder))


def _bounds(anatomy: Anatomy) -> tuple[Array, Array]:
    """The corners of the packed volume: the rib cage with a margin."""
    half_width, half_depth = anatomy.half_width + MARGIN_MM, anatomy.half_depth + MARGIN_MM
    low = np.array([-half_width, -half_depth, anatomy.base - 50], np.float32)
    return low, np.array([half_width, half_depth + anatomy.lean, max(anatomy.top) + MARGIN_MM], np.float32)


def _build(seed: int, number: int, spacing_mm: tuple[float, float, float], folder: Path) -> None:
    random = np.random.default_rng((seed, number, 1))
    anatomy = draw(np.random.default_rng((seed, number, 0)))
    low, high = _bounds(anatomy)
    # Even sizes, since the coarse image averages pairs of voxels.
    count = 2 * np.ceil((high - low) / spacing_mm / 2).astype(int)
    axes = [low[n] + np.float32(spacing_mm[n]) * (np.arange(count[n], dtype=np.float32) + 0.5) for n in range(3)]
    image = np.empty(tuple(count), np.uint8)
    for start, grid in _slabs(axes):
        rendered, _ = render_chest(anatomy, grid, random)
        image[:, :, start : start + SLAB_SLICES] = scale_to_window(rendered, WINDOW_HU)
    np.save(folder / "1.npy", image)
    x, y, z = (n // 2 for n in count)
    coarse = image.reshape(x, 2, y, 2, z, 2).mean(axis=(1, 3, 5), dtype=np.float32)
    np.save(folder / "2.npy", np.rint(coarse).astype(np.uint8))


def _slabs(axes: list[Array]) -> Iterator[tuple[int, Coordinates]]:
    for start in range(0, len(axes[2]), SLAB_SLICES):
        yield start, open_grid(axes[0], axes[1], axes[2][start : start + SLAB_SLICES])
