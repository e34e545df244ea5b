"""Phantom patches packed once into memory-mapped arrays, and read from there in training.

A pack is a folder in the user's cache, named by the digest of its settings, made by all processors at first
use. Patch number n is a function of (seed, n) alone, so that any number of processes makes the same pack.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.medical.datasets.patches import scale_to_window
from apps.medical.datasets.synth.anatomy import Anatomy, draw
from apps.medical.datasets.synth.phantom import patch
from apps.medical.types import ChestInput
from shared.data.build_cache import get_or_build, parallel_map

MAX_BOXES = 6
VERSION = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class PackSettings:
    """What decides a pack's content: how many patches, on which grid, from which seed.

    ``per_chest`` patches come from one anatomy.
    """

    patches: int
    input: ChestInput
    seed: int
    per_chest: int = 8

    @property
    def name(self) -> str:
        """The pack's name: a digest of the settings."""
        stated = asdict(self)
        for name in ("tile_size", "classes"):
            stated["input"].pop(name)
        content = json.dumps([VERSION, stated], sort_keys=True).encode()
        return f"medical-{hashlib.sha256(content).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class Pack:
    """``images`` uint8 (N, X, Y, Z), as ``scale_to_window``; ``boxes`` float32 (N, 6, 6) voxels; ``counts`` (N,)."""

    images: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    counts: NDArray[np.int64]


def open_pack(settings: PackSettings) -> Pack:
    """The pack for ``settings``, made first where it is not there."""
    folder = get_or_build(settings.name, lambda aside: _make(settings, aside))
    names = ("images", "boxes", "counts")
    return Pack(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in names))


def _make(settings: PackSettings, folder: Path) -> None:
    count = settings.patches
    shapes = {
        "images": ((count, *settings.input.patch_size), np.uint8),
        "boxes": ((count, MAX_BOXES, 6), np.float32),
        "counts": ((count,), np.int64),
    }
    for name, (shape, kind) in shapes.items():
        np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=kind, shape=shape).flush()
    chests = range(-(-count // settings.per_chest))
    parallel_map(_fill, ((settings, folder, chest) for chest in chests))


def _fill(settings: PackSettings, folder: Path, chest: int) -> None:
    """Makes the patches of one chest in place."""
    images = np.load(folder / "images.npy", mmap_mode="r+")
    boxes = np.load(folder / "boxes.npy", mmap_mode="r+")
    counts = np.load(folder / "counts.npy", mmap_mode="r+")
    for index in range(chest * settings.per_chest, min((chest + 1) * settings.per_chest, settings.patches)):
        image, found = sample(settings, index)
        images[index] = image
        counts[index] = min(len(found), MAX_BOXES)
        boxes[index, : len(found)] = found[:MAX_BOXES]


def sample(
    settings: PackSettings, index: int, random: np.random.Generator | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Patch number ``index``: image uint8 (X, Y, Z) and boxes (n, 6).

    With ``random``, another patch of the same chest.
    """
    made = patch(
        random or np.random.default_rng((settings.seed, index, 1)),
        _chest(settings.seed, index // settings.per_chest),
        settings.input.patch_size,
        settings.input.spacing_mm,
    )
    return scale_to_window(made.image_xyz, settings.input.window_hu), made.boxes


@lru_cache(maxsize=256)
def _chest(seed: int, number: int) -> Anatomy:
    return draw(np.random.default_rng((seed, number, 0)))
