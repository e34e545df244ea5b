"""The number format in which the recipes train, on a CPU that is faster in bf16 and on one that is not."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

from shared import precision
from shared.precision import choose_precision

FP32 = {"driving": {"tiny", "fcos3d_tiny", "fcos3d_small", "fcos3d_large", "fcos3d_full"}, "medical": set()}
"""Recipes of networks of which none has learnt in bf16 and been scored, or that tests compare to the last bit. Of
finance, whose network is recurrent, it is all."""


@pytest.mark.parametrize("gains", [True, False])
@pytest.mark.parametrize("app", ["medical", "driving", "finance"])
def test_recipes_take_bf16_where_it_is_faster_and_networks_were_scored_in_it(monkeypatch, app, gains):
    monkeypatch.setattr(precision, "cpu_gains_from_bf16", lambda: gains)
    recipes = import_module(f"apps.{app}.recipes").RECIPES
    chosen = {name: choose_precision(make().precision, torch.device("cpu")).name for name, make in recipes.items()}
    in_fp32 = FP32.get(app, set(recipes)) if gains else set(recipes)
    assert {name for name, taken in chosen.items() if taken == "fp32"} == in_fp32
    assert set(chosen.values()) <= {"fp32", "bf16"}
