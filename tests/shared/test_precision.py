"""The number format of the forward pass, and the reason for it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shared import precision
from shared.errors import InvalidInputError
from shared.precision import (
    autocast,
    autocast_dtype,
    choose_precision,
    refuse_unsupported,
    widen_small_convolutions,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"cpu_name": "Intel Xeon"}, None),
        ({"cpu_name": "AMD Zen 5", "avx512_bf16": True}, torch.bfloat16),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True}, None),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, torch.bfloat16),
    ],
)
def test_auto_is_bf16_on_a_cpu_that_is_faster_in_it(monkeypatch, found, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    for cached_function in (precision.cpu_has_bf16, precision.cpu_gains_from_bf16):
        cached_function.cache_clear()
    chosen = choose_precision("auto", CPU)
    for cached_function in (precision.cpu_has_bf16, precision.cpu_gains_from_bf16):
        cached_function.cache_clear()
    assert chosen.dtype == expected == (torch.bfloat16 if "which this CPU supports" in chosen.reason else None)


def test_a_precision_in_the_recipe_is_used():
    assert autocast_dtype("fp32", CPU) is None and autocast_dtype("bf16", CPU) == torch.bfloat16
    assert choose_precision("bf16", CPU).reason == "bf16, set in the recipe"
    with pytest.raises(InvalidInputError, match="fp16 needs a GPU"):
        autocast_dtype("fp16", CPU)
    assert autocast_dtype("fp16", torch.device("cuda")) == torch.float16


def test_the_context_of_the_forward_pass():
    layer = nn.Linear(2, 2)
    with autocast(torch.bfloat16, CPU):
        assert layer(torch.zeros(1, 2)).dtype == torch.bfloat16
    with autocast(None, CPU):
        assert layer(torch.zeros(1, 2)).dtype == torch.float32


def test_a_recurrent_network_is_refused_if_the_cpu_has_no_such_layers_in_bf16(monkeypatch):
    model = nn.Sequential(nn.Linear(1, 1), nn.LSTM(1, 1))
    monkeypatch.setattr(precision, "cpu_runs_recurrent_layers", lambda dtype: False)
    with pytest.raises(InvalidInputError, match="this CPU cannot compute the LSTM 1 in bfloat16; use --precision fp32"):
        refuse_unsupported(model, torch.bfloat16, CPU)
    refuse_unsupported(model, None, CPU)
    refuse_unsupported(model[0], torch.bfloat16, CPU)
    refuse_unsupported(model, torch.bfloat16, torch.device("cuda"))


def test_the_support_for_recurrent_layers_is_found_by_running_one():
    state = torch.get_rng_state()
    precision.cpu_runs_recurrent_layers.cache_clear()
    runs = precision.cpu_runs_recurrent_layers(torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), state)
    layer = nn.LSTM(4, 4)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            layer(torch.zeros(2, 1, 4))[0].sum().backward()
    except RuntimeError:
        assert not runs
    else:
        assert runs


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Conv3d(16, 16, 3, padding=1), (2, 8, 8)),
        (nn.Conv3d(16, 16, 3, padding=1), (2, 2, 2)),
        (nn.Conv2d(16, 16, 3, stride=2, padding=1), (1, 1)),
        (nn.Conv2d(16, 16, 3, padding=1), (8, 8)),
    ],
)
def test_gradients_of_small_convolutions_are_correct_in_bf16(layer, size):
    torch.manual_seed(0)
    x, gradients = torch.randn(2, 16, *size), []
    for dtype in (None, torch.bfloat16):
        widen_small_convolutions(layer, dtype, CPU)
        with autocast(dtype, CPU):
            y = layer(x.contiguous(memory_format=torch.channels_last_3d if len(size) == 3 else torch.channels_last))
        layer.zero_grad()
        y.float().square().mean().backward()
        gradients.append(layer.weight.grad.clone())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0.05, atol=0.02 * float(gradients[0].abs().max()))
