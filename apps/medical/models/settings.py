"""The settings in an artifact that was written before the network's grid was stated once, in ``input``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def current_layout(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a recipe as they are arranged today: model.spacing_mm and data.size are in ``input``."""
    if "input" in recipe:
        return dict(recipe)
    model, data = dict(recipe["model"]), dict(recipe["data"])
    input = {"spacing_mm": model.pop("spacing_mm"), "patch_size": data.pop("size")}
    data.pop("spacing_mm")
    return {**recipe, "model": model, "data": data, "input": input}
