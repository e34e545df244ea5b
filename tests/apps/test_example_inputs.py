"""Programs are timed and compared on the networks' inputs for the samples, not on zeros or noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apps.driving.inference.examples import example_image, example_pseudo_image
from apps.driving.models.decoding import Normalisation
from apps.driving.models.pillars import pillar_encoder
from apps.driving.models.pointpillars import PointPillars
from apps.driving.types import CameraInput, LidarInput
from apps.finance.inference.examples import example_windows
from apps.finance.types import FinanceInput
from apps.medical.inference.examples import example_candidates, example_tiles
from apps.medical.types import ChestInput
from shared.app import Sample
from shared.deploy.sample_inputs import read_sample
from shared.errors import InvalidInputError


def test_the_tiles_and_marks_of_a_chest_hold_lung_and_tissue():
    input = ChestInput()
    tiles = example_tiles(input, (16, 16, 8))["image"]
    assert tiles.shape[:2] == (2, 1) and all(side <= 96 for side in tiles.shape[2:])
    for tile in tiles:
        assert tile.min() >= 0 and tile.max() <= 1 and tile.std() > 0.1
    marks = example_candidates(input, (24, 24, 12), 16)
    assert marks["image"].shape == (16, 2, 24, 24, 12) and marks["known"].shape == (16, 2)
    assert marks["image"].std() > 0.1 and len(torch.unique(marks["known"][:, 0])) == 16


def test_the_pseudo_image_and_the_image_are_those_of_a_frame():
    model, input = PointPillars(), LidarInput(range_m=(0.0, -39.68, -3.0, 69.12, 39.68, 1.0))
    layer = "voxel_encoder.pfn_layers.0."
    norm = {f"{layer}norm.{name}": torch.ones(64) for name in ("weight", "bias", "running_mean", "running_var")}
    weights = {f"{layer}linear.weight": torch.rand(64, 10), **norm}
    pseudo_image = example_pseudo_image(pillar_encoder(model, input, weights), input)
    occupied = (pseudo_image != 0).any(dim=1).float().mean()
    assert pseudo_image.shape == (1, 64, 496, 432) and 0.001 < occupied < 0.5
    image = example_image(CameraInput(), Normalisation())
    assert image.shape[:2] == (1, 3) and all(side % 32 == 0 for side in image.shape[2:]) and 0.1 < image.std() < 3


def test_the_windows_are_those_of_a_series():
    windows = example_windows(FinanceInput(context=64, horizon=8), 128)
    assert [tuple(windows[name].shape[:2]) for name in ("encoder_cont", "decoder_cont")] == [(128, 64), (128, 8)]
    assert all(np.isfinite(value.numpy()).all() and value.std() > 0.1 for value in windows.values())


def test_a_sample_that_cannot_be_read_gives_way_to_the_next(tmp_path):
    def refuse(folder):
        raise InvalidInputError("torn")

    def sample(name, synthetic, files):
        return Sample(name=name, title="", synthetic=synthetic, source="", files=files)

    synthetic_sample, bad_sample = sample("made", True, lambda folder: [folder / "a"]), sample("torn", False, refuse)
    assert read_sample([synthetic_sample, bad_sample], lambda files: files[0].name) == "a"
    with pytest.raises(InvalidInputError, match="none of the samples can be used: made, torn"):
        read_sample([synthetic_sample, bad_sample], lambda files: None)
