"""Boxes around the needed parts of an image: they cover everything, none is too large, and they hold few voxels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.medical.inference.cutting import cut
from apps.medical.inference.tiles import Tile, Tiling
from apps.medical.predictor import NodulePredictor
from apps.medical.types import ChestInput
from tests.apps.medical.test_marks import DECODER

UNITS = (16, 16, 8)


def two_lungs(shape=(26, 18, 24)):
    """Two balls side by side that fill a box except its corners and its centre."""
    places = np.moveaxis(np.indices(shape), 0, -1) / np.subtract(shape, 1)
    return np.any(
        [(((places - (x, 0.5, 0.5)) / (0.22, 0.5, 0.5)) ** 2).sum(axis=-1) <= 1 for x in (0.22, 0.78)], axis=0
    )


@st.composite
def masks(draw):
    shape = draw(st.tuples(*[st.integers(1, 14)] * 3))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    needed = np.zeros(shape, bool)
    for _ in range(draw(st.integers(0, 4))):
        low = random.integers(0, shape)
        high = low + 1 + random.integers(0, np.subtract(shape, low))
        needed[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return needed


@given(masks(), st.tuples(*[st.integers(1, 4)] * 3), st.tuples(*[st.integers(0, 2)] * 3))
def test_boxes_cover_all_needed_blocks_and_respect_the_size_limits(needed, least, shared):
    most = max(40, int(np.prod(np.maximum(least, np.add(shared, 2)))))
    found, seen = cut(needed, most, least, shared), np.zeros_like(needed)
    for low, high in found:
        assert (low >= 0).all() and (high <= needed.shape).all()
        assert (high - low >= np.minimum(least, needed.shape)).all()
        assert np.prod(high - low) <= most
        seen[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    assert not (needed & ~seen).any()
    assert bool(found) == needed.any()


def test_two_lungs_are_split_between_them_with_an_overlap():
    needed = np.zeros((30, 10, 10), bool)
    needed[:10], needed[22:] = True, True
    apart = [(low.tolist(), high.tolist()) for low, high in cut(needed, 1000, (1, 1, 1), (1, 1, 1))]
    assert sorted(apart) == [([0, 0, 0], [10, 10, 10]), ([22, 0, 0], [30, 10, 10])]
    block = np.ones((19, 10, 10), bool)
    (first, second) = sorted((low[0], high[0]) for low, high in cut(block, 1000, (1, 1, 1), (1, 1, 1)))
    assert first == (0, second[0] + 1) and second[1] == 19


def test_trimmed_tiles_of_lungs_save_a_third_of_the_voxels_and_are_at_most_a_batch():
    needed, even = two_lungs(), Tiling()
    trimmed = Tiling(trimmed=True).covering(needed, UNITS)
    whole = even.covering(needed, UNITS)
    voxels = [int(np.prod(tile.size)) for tile in trimmed]
    assert sum(voxels) < 2 / 3 * sum(int(np.prod(tile.size)) for tile in whole)
    assert max(voxels) <= even.batch * np.prod(even.size)
    assert all(isinstance(tile, Tile) and isinstance(tile.start[0], int) for tile in trimmed)
    assert Tiling(trimmed=True).covering(np.zeros_like(needed), UNITS) == []


@pytest.mark.parametrize(("patch", "trimmed"), [((160, 160, 96), True), ((80, 80, 48), False)])
def test_tiles_are_trimmed_for_networks_trained_on_patches_of_their_size(patch, trimmed):
    """The heads normalise over a whole tile, so that their outputs depend on the tile's size."""
    predictor = NodulePredictor(
        decoder=DECODER, program=lambda inputs: {}, input=ChestInput(patch_size=patch, tile_size=(160, 160, 96))
    )
    assert predictor.tiling.trimmed is trimmed
