"""The network of an artifact, by what its recipe says of it; nothing of the engine is needed for that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apps.finance.models.settings import FinanceModel
from apps.finance.types import FinanceInput
from shared.recipe_file import from_mapping


def stored_settings(recipe: Mapping[str, Any]) -> tuple[FinanceModel, FinanceInput]:
    """The model's and the input's settings in the key ``recipe`` of a ``recipe.yaml``.

    Before there was an input, the model had ``context`` and ``horizon``; later what the library's network takes.
    """
    model = dict(recipe["model"])
    before = {name: model.pop(name) for name in ("context", "horizon", "library") if name in model}
    return from_mapping(FinanceModel(), model), from_mapping(FinanceInput(), {**before, **(recipe.get("input") or {})})
