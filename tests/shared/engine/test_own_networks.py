"""Networks that users bring train as they do elsewhere, or are refused before the first step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from shared.optimizers import SGD, AdamW
from tests.shared.engine import line
from tests.shared.engine.line import weights


def recipe(build, **limits):
    """The recipe of the line with the network that ``build`` returns."""
    kind = type("Network", (line.Network,), {"build": lambda self, input=None: build(), "__slots__": ()})
    return replace(line.recipe(**limits), model=kind())


def sliced(copy):
    """A layer for two columns, made of one for three, as for a network that was trained on more channels."""
    layer = nn.Linear(3, 8)
    layer.weight = nn.Parameter(copy(layer.weight.detach()[:, :2]))
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 1))


@pytest.mark.parametrize("optimizer", [AdamW(learning_rate=0.02), SGD(learning_rate=0.02)])
def test_a_parameter_that_is_a_slice_trains_as_a_contiguous_copy_does(tmp_path, optimizer):
    for name, copy in (("slice", lambda weight: weight), ("copy", lambda weight: weight.contiguous())):
        line.run(replace(recipe(lambda copy=copy: sliced(copy), steps=5), optimizer=optimizer), tmp_path / name)
    for name, value in weights(tmp_path / "copy", 5).items():
        torch.testing.assert_close(weights(tmp_path / "slice", 5)[name], value)
