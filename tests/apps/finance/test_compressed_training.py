"""A training of two processes whose gradients are compressed ends near the one whose gradients are not."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from apps.finance.datasets.synthetic import Synthetic
from apps.finance.recipes import tiny
from shared.engine.loop import fit
from shared.engine.run import Run
from shared.strategy import DDP
from tests.shared.processes import run

COMPRESSIONS = ("none", "fp16", "bf16", "powersgd")
TOLERANCE = 0.05


def train(folder: Path) -> dict[str, list[float]]:
    """By compression: the validation loss after each of two epochs, from the same weights on the same batches."""
    found = {}
    for compression in COMPRESSIONS:
        recipe = replace(tiny(), data=Synthetic(series=4, validation_series=2, rows=200, stride=4))
        recipe = replace(recipe, strategy=DDP(compression=compression, powersgd_rank=1, powersgd_start=1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = fit(recipe, Run(folder / compression, "finance", "tiny"), device="cpu", quiet=True)
        found[compression] = [entry["loss"] for entry in result.history]
    return found


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    return run(train, tmp_path_factory.mktemp("runs"), limit_s=180)[0]


@pytest.mark.parametrize("compression", COMPRESSIONS[1:])
def test_the_loss_ends_within_a_twentieth_of_the_uncompressed_one(losses, compression):
    plain, compressed = losses["none"], losses[compression]
    assert plain[-1] < plain[0]
    # The gradients were indeed compressed: the loss is not bit for bit the same.
    assert compressed != plain
    assert compressed[-1] == pytest.approx(plain[-1], rel=TOLERANCE)
