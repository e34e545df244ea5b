"""The network of an artifact, by what its recipe says of it; nothing of the engine is needed for that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apps.finance.models.calendar import columns_taken
from apps.finance.models.settings import FinanceModel
from apps.finance.types import FinanceInput
from shared.deploy.artifact import Artifact
from shared.recipe_file import from_mapping


def stored_settings(recipe: Mapping[str, Any]) -> tuple[FinanceModel, FinanceInput]:
    """The model's and the input's settings in the key ``recipe`` of a ``recipe.yaml``."""
    return from_mapping(FinanceModel(), recipe["model"]), from_mapping(FinanceInput(), recipe["input"])


def input_needed(artifact: Artifact) -> str | None:
    """The columns that a file must have for the artifact's network, as a sentence; None where any series will do."""
    recipe = artifact.recipe()["recipe"]
    _, input = stored_settings(recipe)
    library = input.library
    if library is None:
        return None
    columns = [repr(name) for name in columns_taken(library)]
    if library.trained_here:
        series = (recipe.get("data") or {}).get("series")
        named = [f"{series!r}, the names of series"] if isinstance(series, str) else []
        columns = [f"{library.columns[library.target]!r}, the value", *named, *columns]
    elif library.group in library.categories:
        known = list(library.categories[library.group])
        columns = [f"names of series among {', '.join(known[:5])}{', …' * (len(known) > 5)}", *columns]
    if not columns:
        return None
    return (
        "CSV, Parquet or Excel. The model was trained on a table of its own, and takes files with the same columns: "
        f"times, {', '.join(columns)}."
    )
