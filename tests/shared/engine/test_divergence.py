"""The guard against losses that are not finite, in its GPU mode: its flag stays on the device."""

from __future__ import annotations

import pytest
import torch

from shared.engine.divergence import FiniteGuard
from shared.optimizers import SGD, AdamW


@pytest.fixture
def guard() -> FiniteGuard:
    finite_guard = FiniteGuard(torch.device("cpu"))
    finite_guard._on_host = False
    return finite_guard


@pytest.mark.parametrize("settings", [AdamW(), SGD()], ids=["AdamW", "SGD"])
def test_a_fused_optimizer_skips_the_step_without_the_host(guard, settings):
    model = torch.nn.Linear(2, 1)
    optimizer = settings.build(model)

    def step(number, term, norm=1.0):
        model.weight.grad = torch.ones_like(model.weight)
        model.bias.grad = torch.ones_like(model.bias)
        before = model.weight.detach().clone()
        guard.step(optimizer, number, torch.tensor(norm), {"a": torch.tensor(2.0), "b": torch.tensor(term)})
        return not torch.equal(before, model.weight)

    assert step(0, 1.0) and guard.first_fault() is None
    assert not step(1, float("nan"))
    assert not step(2, 1.0, norm=float("inf"))
    assert step(3, 1.0)
    # The first fault is reported, even if it is read later.
    number, description = guard.first_fault()
    assert number == 1 and description == "the loss is nan (a 2, b nan) and the gradient norm 1.0"


def test_an_optimizer_without_a_fused_kernel_waits_for_the_flag(guard):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Rprop([parameter])
    parameter.grad = torch.ones(1)
    guard.step(optimizer, 0, torch.tensor(float("nan")), {"loss": torch.tensor(1.0)})
    assert parameter.item() == 0 and guard.first_fault() == (0, "the loss is 1.0 and the gradient norm nan")


def test_with_a_scaler_the_norm_is_not_checked(guard):
    assert guard.record(0, torch.tensor(float("inf")), {"loss": torch.tensor(1.0)}, check_norm=False)
    assert guard.first_fault() is None
    assert not guard.record(1, torch.tensor(1.0), {"loss": torch.tensor(float("inf"))}, check_norm=False)
    assert guard.first_fault()[0] == 1
