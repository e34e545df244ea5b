"""If loss weights are counted first, gradients accumulated over micro-batches equal those of the whole batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from shared.app import find
from shared.comms.group import Group
from shared.data.loader import Part
from shared.engine.losses import count_factors, total, weighted_terms
from shared.engine.task import Counted, Prepared, WeightedLoss

pytestmark = pytest.mark.filterwarnings("ignore")

SINGLE_PROCESS = Group(0, 1, torch.device("cpu"))
# The medical sampler draws its negatives from the hardest of each micro-batch, so they differ from the whole batch's.
RECIPES = [
    ("driving", "tiny", 1e-5),
    ("driving", "fcos3d_tiny", 1e-5),
    ("finance", "tiny", 1e-5),
    ("medical", "tiny", 0.1),
]


@pytest.mark.parametrize(("app", "name", "tolerance"), RECIPES)
def test_counted_micro_batches_have_the_gradient_of_the_whole_batch(app: str, name: str, tolerance: float) -> None:
    recipe = find(app).recipes()[name]()
    if app == "finance":
        recipe = replace(recipe, model=replace(recipe.model, dropout=0.0))
    torch.manual_seed(0)
    model = recipe.model.build(recipe.input).train()
    task, data = recipe.task.build(), recipe.data.train(recipe.input)
    assert isinstance(task, Counted)
    if isinstance(task, Prepared):
        task.prepare(model)
    for module in model.modules():
        # Batch normalisation uses the statistics of each micro-batch, which always differ from the whole batch's.
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()

    def part(indices: Any) -> Part:
        batch = data.batch(np.array(indices), None)
        if app == "finance" and 0 in indices:
            # The last values of the first window are missing.
            batch["observed"][0, 1:] = 0
        return Part(batch, len(indices) / 4)

    def gradient(parts: list[Part], *, counted: bool) -> torch.Tensor:
        model.zero_grad()
        torch.manual_seed(0)
        factors = count_factors(task.count, parts, SINGLE_PROCESS)
        for micro_batch, factor in zip(parts, factors, strict=True):
            loss_terms = task.loss(model, micro_batch.batch)
            losses = loss_terms if isinstance(loss_terms, dict) else {"loss": loss_terms}
            for key, loss in losses.items():
                assert isinstance(loss, WeightedLoss) and key in factor
                if app != "medical":
                    assert float(task.count(micro_batch.batch)[key]) == float(loss.weight)
            if counted:
                loss = total(weighted_terms(loss_terms, micro_batch.weight, SINGLE_PROCESS, factor, parts=len(parts)))
            else:
                loss = torch.stack([loss.mean for loss in losses.values()]).sum() * micro_batch.weight
            loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    whole = gradient([part(range(4))], counted=True)
    parts = [part([0]), part([1, 2]), part([3])]
    error = ((gradient(parts, counted=True) - whole).norm() / whole.norm()).item()
    uncounted = ((gradient(parts, counted=False) - whole).norm() / whole.norm()).item()
    print(f"{app} {name}: relative error {error:.1e} counted, {uncounted:.2f} without counting")
    assert error < tolerance and error < uncounted
