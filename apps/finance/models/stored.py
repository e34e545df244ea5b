"""The network of an artifact, by what its recipe says of it; nothing of the engine is needed for that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apps.finance.models.settings import FinanceModel
from apps.finance.types import FinanceInput
from shared.recipe_file import from_mapping


def stored_settings(recipe: Mapping[str, Any]) -> tuple[FinanceModel, FinanceInput]:
    """The model's and the input's settings in the key ``recipe`` of a ``recipe.yaml``."""
    return from_mapping(FinanceModel(), recipe["model"]), from_mapping(FinanceInput(), recipe["input"])
