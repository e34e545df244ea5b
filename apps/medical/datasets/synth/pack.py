"""Phantom patches: which chest each is of, and packed once into memory-mapped arrays where they are the same each time.

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
from apps.medical.datasets.synth.chests import PackedChest, open_chest, pack_chests
from apps.medical.datasets.synth.phantom import patch
from apps.medical.types import ChestInput
from shared.data.build_cache import get_or_build, parallel_map

MAX_BOXES = 6
VERSION = 6
COARSE_EVERY = 4
"""Where the network looks twice, one patch in so many is of the second, coarser look."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackSettings:
    """What decides a pack's content: how many patches, on which grid, from which seed.

    Patches are cut out of ``chests`` packed chests; without any, ``per_chest`` patches are painted of one anatomy.
    """

    patches: int
    input: ChestInput
    seed: int
    per_chest: int = 8
    chests: int = 0

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
    if settings.chests:
        pack_chests(settings.seed, settings.chests, settings.input.spacing_mm)
    parallel_map(_fill, ((settings, folder, chest) for chest in chests), "packing patches, by chest")


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

    With ``random``, another patch: of the same chest, or of any packed one.
    """
    random = random or np.random.default_rng((settings.seed, index, 1))
    spacing_mm, second = settings.input.spacing_mm, settings.input.second_look
    if settings.chests:
        chest: PackedChest | Anatomy = open_chest(settings.seed, int(random.integers(settings.chests)), spacing_mm)
    else:
        chest = _chest(settings.seed, index // settings.per_chest)
    coarse = second if second > 1 and index % COARSE_EVERY == COARSE_EVERY - 1 else 1
    made = patch(random, chest, settings.input.patch_size, spacing_mm, coarse=coarse)
    return scale_to_window(made.image_xyz, settings.input.window_hu), made.boxes


@lru_cache(maxsize=256)
def _chest(seed: int, number: int) -> Anatomy:
    return draw(np.random.default_rng((seed, number, 0)))
