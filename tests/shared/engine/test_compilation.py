"""A compiled run trains the same weights as an uncompiled one, and is refused if there is no C++ compiler."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from shared.engine.compilation import compile_in_place
from shared.errors import InvalidInputError
from tests.shared.engine import line
from tests.shared.engine.line import weights


class Linear(line.Network):
    """The smallest network."""

    def build(self, input=None):
        return torch.nn.Linear(2, 1)


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="there is no C++ compiler")
def test_a_compiled_run_trains_the_same_weights_and_may_resume_either_way(tmp_path):
    # One batch shape each for training and validation: each further shape is compiled again, which takes seconds.
    recipe = replace(line.recipe(steps=3, evaluation_batch=13, checkpoint_every=100), model=Linear())
    line.run(recipe, tmp_path / "eager")
    line.run(replace(recipe, compile=True), tmp_path / "compiled")
    assert any("torch.compile compiles" in row for row in (tmp_path / "compiled/events.jsonl").read_text().splitlines())
    for name, tensor in weights(tmp_path / "eager", 3).items():
        torch.testing.assert_close(weights(tmp_path / "compiled", 3)[name], tensor, rtol=1e-4, atol=1e-5)
    line.run(replace(recipe, limits=replace(recipe.limits, steps=6)), tmp_path / "compiled")
    assert weights(tmp_path / "compiled", 6)


def test_compilation_is_refused_without_a_compiler():
    from torch._inductor import config

    match = r"--compile needs a C\+\+ compiler, and this machine has none: install"
    with config.patch({"cpp.cxx": (None, "/nowhere/g++")}), pytest.raises(InvalidInputError, match=match):
        compile_in_place(line.Network(), line.Network().build())
