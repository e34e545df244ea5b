"""Generates phantom patches, and packs fixed sets of them into memory-mapped arrays.

A pack is a folder in the user's cache, named by the digest of its settings and built on all processors at first use.
Patch number n depends only on (seed, n), so that any number of processes builds the same pack.
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
COARSE_INTERVAL = 4
"""If the network makes a second, coarser pass, one patch in this many is for that pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackSettings:
    """The settings that determine a pack's content.

    Patches are cropped from ``chests`` packed chests; if that is 0, ``per_chest`` patches are rendered per anatomy.
    """

    patches: int
    input: ChestInput
    seed: int
    per_chest: int = 8
    chests: int = 0

    @property
    def name(self) -> str:
        """The name of the pack: a digest of the settings."""
        settings = asdict(self)
        for name in ("tile_size", "classes"):
            settings["input"].pop(name)
        content = json.dumps([VERSION, settings], sort_keys=True).encode()
        return f"medical-{hashlib.sha256(content).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class Pack:
    """Packed patches.

    images  uint8 (N, X, Y, Z), scaled by ``scale_to_window``
    boxes   float32 (N, ``MAX_BOXES``, 6) in voxels
    counts  (N,) number of boxes of each patch
    """

    images: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    counts: NDArray[np.int64]


def open_pack(settings: PackSettings) -> Pack:
    """Opens the pack for ``settings``, after building it if it is missing."""
    folder = get_or_build(settings.name, lambda new_folder: _build(settings, new_folder))
    names = ("images", "boxes", "counts")
    return Pack(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in names))


def _build(settings: PackSettings, folder: Path) -> None:
    count = settings.patches
    shapes = {
        "images": ((count, *settings.input.patch_size), np.uint8),
        "boxes": ((count, MAX_BOXES, 6), np.float32),
        "counts": ((count,), np.int64),
    }
    for name, (shape, dtype) in shapes.items():
        np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape).flush()
    chests = range(-(-count // settings.per_chest))
    if settings.chests:
        pack_chests(settings.seed, settings.chests, settings.input.spacing_mm)
    parallel_map(_write_patches, ((settings, folder, chest) for chest in chests), "packing patches, by chest")


def _write_patches(settings: PackSettings, folder: Path, chest: int) -> None:
    """Generates the patches of one chest and writes them into the pack."""
    images = np.load(folder / "images.npy", mmap_mode="r+")
    boxes = np.load(folder / "boxes.npy", mmap_mode="r+")
    counts = np.load(folder / "counts.npy", mmap_mode="r+")
    for index in range(chest * settings.per_chest, min((chest + 1) * settings.per_chest, settings.patches)):
        image, patch_boxes = make_patch(settings, index)
        images[index] = image
        counts[index] = min(len(patch_boxes), MAX_BOXES)
        boxes[index, : len(patch_boxes)] = patch_boxes[:MAX_BOXES]


def make_patch(
    settings: PackSettings, index: int, random: np.random.Generator | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Patch number ``index``: image uint8 (X, Y, Z) and boxes (N, 6).

    With ``random`` the patch is a different one, of the same anatomy or of any packed chest.
    """
    random = random or np.random.default_rng((settings.seed, index, 1))
    spacing_mm, second = settings.input.spacing_mm, settings.input.second_look
    if settings.chests:
        chest: PackedChest | Anatomy = open_chest(settings.seed, int(random.integers(settings.chests)), spacing_mm)
    else:
        chest = _anatomy(settings.seed, index // settings.per_chest)
    coarse = second if second > 1 and index % COARSE_INTERVAL == COARSE_INTERVAL - 1 else 1
    generated = patch(random, chest, settings.input.patch_size, spacing_mm, coarse=coarse)
    return scale_to_window(generated.image_xyz, settings.input.window_hu), generated.boxes


@lru_cache(maxsize=256)
def _anatomy(seed: int, number: int) -> Anatomy:
    return draw(np.random.default_rng((seed, number, 0)))
