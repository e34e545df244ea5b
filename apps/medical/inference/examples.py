"""Tiles and candidates from a sample scan, for timing and comparing the networks' programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from apps.medical.adapters.source import read_volume
from apps.medical.inference.candidates import Candidates
from apps.medical.inference.grid import cover, reorient_to_lps, resample
from apps.medical.inference.lungs import Lungs, find_lungs
from apps.medical.inference.second_stage import cut_patches, scalar_inputs
from apps.medical.models.dense import INPUT
from apps.medical.samples import samples
from apps.medical.types import ChestInput, CTVolume
from shared.deploy.sample_inputs import read_sample

_MAX_TILE_SIDE = 96
"""Maximum side of the timed tiles in voxels."""
_TILE_CENTRES = (0.25, 0.75)
"""Centres of the two tiles along x, as shares of the lungs' width: one tile in each lung."""
_BOX_SIDE = 8.0
"""Side of the candidates' boxes in voxels."""


def example_tiles(input: ChestInput, divisible: Sequence[int]) -> dict[str, Tensor]:
    """Two tiles with sides of at most 96 voxels, one centred in each lung, padded with 0 beyond the scan."""
    image = _lungs_of_sample(input, divisible).image
    size = [min(side, _MAX_TILE_SIDE) for side in input.tile_size]
    tiles = image.new_zeros((len(_TILE_CENTRES), 1, *size))
    for tile, x_centre in zip(tiles[:, 0], _TILE_CENTRES, strict=True):
        centres = [share * length for share, length in zip((x_centre, 0.5, 0.5), image.shape, strict=True)]
        starts = [max(0, round(centre - side / 2)) for centre, side in zip(centres, size, strict=True)]
        part = image[tuple(slice(start, start + side) for start, side in zip(starts, size, strict=True))]
        tile[tuple(slice(0, length) for length in part.shape)] = part
    return {INPUT: tiles}


def example_candidates(input: ChestInput, size: tuple[int, int, int], count: int) -> dict[str, Tensor]:
    """The second stage's inputs for ``count`` candidates at random places in the lungs' box with random scores."""
    import torch

    scan = _lungs_of_sample(input, (1, 1, 1))
    random = np.random.default_rng(0)
    low = random.uniform(0, 1, (count, 3)) * np.maximum(np.array(scan.image.shape) - _BOX_SIDE, 0)
    candidates = Candidates(
        scan.image,
        scan.grid,
        np.concatenate([low, low + _BOX_SIDE], axis=1),
        random.uniform(0.05, 0.95, count),
        np.zeros(count, np.int64),
    )
    return {"image": cut_patches(candidates, size), "known": torch.from_numpy(scalar_inputs(candidates))}


def _lungs_of_sample(input: ChestInput, divisible: Sequence[int]) -> Candidates:
    """The lungs of a sample at the network's spacing and window, without candidates."""

    def read(files: Sequence[Path]) -> tuple[CTVolume, Lungs] | None:
        volume = reorient_to_lps(read_volume(files))
        lungs = find_lungs(volume)
        return None if lungs is None else (volume, lungs)

    volume, lungs = read_sample(samples(), read)
    grid = cover(volume, lungs.low_ijk, lungs.high_ijk, input.spacing_mm, divisible)
    image = resample(volume, grid, input.window_hu)
    return Candidates(image.float(), grid, np.zeros((0, 6)), np.zeros(0), np.zeros(0, np.int64))
