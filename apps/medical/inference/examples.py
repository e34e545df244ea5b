"""Tiles and marks out of a scan of the samples: what the networks' programs are timed and compared on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from apps.medical.adapters.source import read_volume
from apps.medical.inference.candidates import Candidates
from apps.medical.inference.grid import cover, reorient_to_lps, resample
from apps.medical.inference.lungs import Lungs, find_lungs
from apps.medical.inference.second_stage import cut_patches, known
from apps.medical.models.dense import INPUT
from apps.medical.samples import samples
from apps.medical.types import ChestInput, CTVolume
from shared.deploy.sample_inputs import read_sample

_SIDE = 96
"""Of the tiles that are timed, in voxels, at most: as many go through at once where they are not large."""
_PLACES = (0.25, 0.75)
"""Of the middles of the two tiles across the lungs: one lies in each lung."""
_MARK = 8.0
"""Sides of the marks, in voxels."""


def example_tiles(input: ChestInput, divisible: Sequence[int]) -> dict[str, Tensor]:
    """Two tiles of at most 96 voxels a side, out of the middle of each lung; 0 where the scan ends before."""
    image = _lungs_of_sample(input, divisible).image
    size = [min(side, _SIDE) for side in input.tile_size]
    tiles = image.new_zeros((len(_PLACES), 1, *size))
    for tile, place in zip(tiles[:, 0], _PLACES, strict=True):
        middles = [share * length for share, length in zip((place, 0.5, 0.5), image.shape, strict=True)]
        begins = [max(0, round(middle - side / 2)) for middle, side in zip(middles, size, strict=True)]
        part = image[tuple(slice(begin, begin + side) for begin, side in zip(begins, size, strict=True))]
        tile[tuple(slice(0, length) for length in part.shape)] = part
    return {INPUT: tiles}


def example_marks(input: ChestInput, size: tuple[int, int, int], count: int) -> dict[str, Tensor]:
    """So many marks anywhere in the lungs' box, of any score, as the second stage is given them."""
    import torch

    scan = _lungs_of_sample(input, (1, 1, 1))
    random = np.random.default_rng(0)
    low = random.uniform(0, 1, (count, 3)) * np.maximum(np.array(scan.image.shape) - _MARK, 0)
    marks = Candidates(
        scan.image,
        scan.grid,
        np.concatenate([low, low + _MARK], axis=1),
        random.uniform(0.05, 0.95, count),
        np.zeros(count, np.int64),
    )
    return {"image": cut_patches(marks, size), "known": torch.from_numpy(known(marks))}


def _lungs_of_sample(input: ChestInput, divisible: Sequence[int]) -> Candidates:
    """The lungs of a sample as the network sees them, without any mark."""

    def read(files: Sequence[Path]) -> tuple[CTVolume, Lungs] | None:
        volume = reorient_to_lps(read_volume(files))
        lungs = find_lungs(volume)
        return None if lungs is None else (volume, lungs)

    volume, lungs = read_sample(samples(), read)
    grid = cover(volume, lungs.low_ijk, lungs.high_ijk, input.spacing_mm, divisible)
    image = resample(volume, grid, input.window_hu)
    return Candidates(image.float(), grid, np.zeros((0, 6)), np.zeros(0), np.zeros(0, np.int64))
