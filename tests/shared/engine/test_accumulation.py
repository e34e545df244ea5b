"""Gradients accumulated over micro-batches and processes equal those of the whole batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from shared.comms.group import Group
from shared.data.loader import Loader, Part
from shared.data.order import Permutation
from shared.engine.losses import count_factors, total, weighted_terms
from shared.engine.task import WeightedLoss
from shared.errors import InvalidInputError
from tests.shared.engine import line
from tests.shared.engine.line import train, weights
from tests.shared.processes import run

ALONE = Group(0, 1, torch.device("cpu"))


class Uncounted(line.Regression):
    """A mean over a few samples that are unevenly distributed over the micro-batches; some contain none."""

    def loss(self, model, batch):
        counts = batch["x"][:, :1] > 0.7
        square = (model(batch["x"]) - batch["y"]).square() * counts
        mean = WeightedLoss(square.sum() / counts.sum().clamp(min=1), counts.sum())
        return {"square": mean, "magnitude": model(batch["x"]).square().mean() * 0.1}


class Counted(Uncounted):
    def count(self, batch):
        return {"square": (batch["x"][:, :1] > 0.7).sum()}


def without_dropout(task, **limits):
    return replace(line.recipe(task, **limits), model=line.Network(dropout=0.0))


@pytest.mark.parametrize(("micro_batch", "sizes"), [(None, [[4], [4], [3]]), (2, [[2, 2], [2, 2], [2, 1]]), (9, None)])
def test_micro_batches_are_weighted_by_their_number_of_samples(micro_batch, sizes):
    order = Permutation(seed=0, length=40, batch=11)
    parts = []
    for rank in range(3):
        loader = Loader(line.Points(40), order, device=torch.device("cpu"), rank=rank, world=3, micro_batch=micro_batch)
        (step,) = loader.steps(3, 4)
        assert (step.number, step.epoch) == (3, 1)
        if sizes:
            assert [len(part.batch["x"]) for part in step.parts] == sizes[rank]
        parts += step.parts
    assert sum(part.weight for part in parts) == pytest.approx(1)
    # Concatenated they are the global batch.
    whole = line.Points(40).batch(order.indices(3), order.key(3))["x"]
    assert torch.equal(torch.cat([part.batch["x"] for part in parts]), whole)


def gradients(task, sizes, *, counted):
    torch.manual_seed(0)
    model = line.Network(dropout=0.0).build()
    points = line.Points(40)
    parts = [
        Part(points.batch(indices, None), len(indices) / 40) for indices in np.split(np.arange(40), np.cumsum(sizes))
    ]
    factors = count_factors(task.count, parts, ALONE) if counted else [None] * len(parts)
    for part, factor in zip(parts, factors, strict=True):
        found = task.loss(model, part.batch)
        if counted:
            loss = total(weighted_terms(found, part.weight, ALONE, factor, parts=len(parts)))
        else:
            loss = (found["square"].mean + found["magnitude"]) / len(parts)
        loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_counted_losses_accumulate_to_the_gradient_of_the_whole_batch():
    whole = gradients(Counted(), [], counted=True)
    parts = gradients(Counted(), [3, 20, 10], counted=True)
    assert (parts - whole).norm() / whole.norm() < 1e-6
    # Averaging the means of the micro-batches gives a different gradient.
    assert (gradients(Counted(), [3, 20, 10], counted=False) - whole).norm() / whole.norm() > 0.05


@pytest.mark.parametrize("task", [line.Regression, Counted])
def test_a_run_in_micro_batches_equals_the_run_in_whole_batches(tmp_path, task):
    for micro_batch in (None, 1, 3):
        line.run(without_dropout(task, micro_batch=micro_batch), tmp_path / str(micro_batch))
    whole = weights(tmp_path / "None", 30)
    for name, tensor in whole.items():
        torch.testing.assert_close(weights(tmp_path / "1", 30)[name], tensor, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(weights(tmp_path / "3", 30)[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_run_may_resume_with_a_different_micro_batch(tmp_path):
    line.run(without_dropout(line.Regression, steps=15), tmp_path)
    assert line.run(without_dropout(line.Regression, micro_batch=2), tmp_path).steps == 30


def test_accumulating_an_uncounted_loss_is_refused(tmp_path):
    with pytest.raises(
        InvalidInputError, match=r"the loss square is a WeightedLoss .* give the task a method count\(batch\)"
    ):
        train(tmp_path, Uncounted, micro_batch=2)


def train_counted(path):
    line.run(without_dropout(Counted, micro_batch=1, log_every=1), path)


def test_micro_batches_on_three_processes_train_what_one_process_trains(tmp_path):
    run(train_counted, tmp_path / "three", processes=3)
    line.run(without_dropout(Counted), tmp_path / "one")
    one_step, three = weights(tmp_path / "one", 30), weights(tmp_path / "three", 30)
    for name, tensor in one_step.items():
        torch.testing.assert_close(three[name], tensor, rtol=1e-4, atol=1e-5)
