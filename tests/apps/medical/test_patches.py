"""Training patches: packed ones are fixed; fresh ones are a function of (seed, epoch, index), new in every epoch."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from apps.medical.datasets.synth.pack import PackSettings
from apps.medical.datasets.synthetic import FreshPatches, Synthetic
from apps.medical.recipes import small
from apps.medical.types import ChestInput
from shared.data.order import Key

GRID = ChestInput(patch_size=(48, 48, 24), spacing_mm=(1.0, 1.0, 2.0))
SETTINGS = PackSettings(patches=6, input=GRID, seed=4, per_chest=3)


def test_fresh_patches_are_reproducible_and_differ_between_epochs():
    key = Key(seed=1, epoch=0)
    both = FreshPatches(SETTINGS).batch(np.array([5, 2]), key)
    alone = FreshPatches(dataclasses.replace(SETTINGS)).batch(np.array([2]), key)
    assert np.array_equal(both["image"][1], alone["image"][0])
    assert np.array_equal(both["boxes"][1], alone["boxes"][0])
    next_epoch = FreshPatches(SETTINGS).batch(np.array([2]), Key(seed=1, epoch=1))
    assert (next_epoch["image"] - alone["image"]).abs().mean() > 0.02


def test_boxes_are_inside_their_patch_and_contain_dense_tissue():
    batch = FreshPatches(SETTINGS).batch(np.arange(6), Key(seed=0, epoch=3))
    assert batch["image"].shape == (6, 1, 48, 48, 24)
    assert batch["image"].min() >= 0 and batch["image"].max() <= 1
    found = [(image[0], box) for image, boxes in zip(batch["image"], batch["boxes"], strict=True) for box in boxes]
    assert found
    for image, box in found:
        low, high = box[:3].floor().int(), box[3:].ceil().int()
        assert (box[:3] >= 0).all() and (box[3:] <= torch.tensor([48, 48, 24])).all()
        inside = image[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
        assert np.percentile(inside, 80) > (-780 + 1024) / 1324


def test_the_small_recipe_trains_on_fresh_patches_and_validates_on_packed_ones(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = dataclasses.replace(small().data, train_patches=2, validation_patches=1)
    assert isinstance(data.train(GRID), FreshPatches) and len(data.train(GRID)) == 2
    validation = data.validation(GRID)
    first, second = (validation.batch(np.array([0]), None)["image"] for _ in range(2))
    assert np.array_equal(first, second)
    assert not isinstance(Synthetic(train_patches=1).train(GRID), FreshPatches)
    assert data.fingerprint()["fresh_in_every_epoch"] is True
    assert data.fingerprint()["patches"] == pytest.approx(2)
