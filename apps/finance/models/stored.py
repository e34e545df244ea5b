"""The network settings stored in an artifact's recipe; reads them without importing the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apps.finance.adapters.columns import matching_label
from apps.finance.models.calendar import columns_taken
from apps.finance.models.settings import FinanceModel
from apps.finance.types import FinanceInput
from shared.app import Sample
from shared.deploy.artifact import Artifact
from shared.recipe_file import from_mapping


def stored_settings(recipe: Mapping[str, Any]) -> tuple[FinanceModel, FinanceInput]:
    """The model and input settings under the key ``recipe`` of a ``recipe.yaml``."""
    return from_mapping(FinanceModel(), recipe["model"]), from_mapping(FinanceInput(), recipe["input"])


def input_needed(artifact: Artifact) -> str | None:
    """A sentence with the columns that a file must have for the artifact's network; None if any series will do."""
    recipe = artifact.recipe()["recipe"]
    _, input = stored_settings(recipe)
    library = input.library
    if library is None:
        return None
    columns = [repr(name) for name in columns_taken(library)]
    if library.trained_here:
        series = (recipe.get("data") or {}).get("series")
        series_text = _names_of_series(series) if isinstance(series, str) else []
        columns = [f"{library.columns[library.target]!r}, the value", *series_text, *columns]
    elif library.group in library.categories:
        known = list(library.categories[library.group])
        columns = [f"names of series among {', '.join(known[:5])}{', …' * (len(known) > 5)}", *columns]
    elif columns and "+" in library.group:
        joined = [repr(name) for name in library.group.split("+")]
        columns = [f"{library.target!r}, the value", *_names_of_series(library.group), *columns]
        columns = [column for column in columns if column not in joined]
    if not columns:
        return None
    return (
        "CSV, Parquet or Excel. The model was trained on a specific table and takes files with the same columns: "
        f"times, {', '.join(columns)}."
    )


def _names_of_series(series: str) -> list[str]:
    """What is said about the column that names the series, or about several columns that name them together."""
    names = " and ".join(map(repr, series.split("+")))
    return [f"{names}, which name the series together" if "+" in series else f"{names}, the names of series"]


def sample_fault(artifact: Artifact, sample: Sample) -> str | None:
    """Why the artifact's network cannot read a sample: which columns, or names of series, it lacks; None if it can."""
    _, input = stored_settings(artifact.recipe()["recipe"])
    library = input.library
    if library is None:
        return None
    needed = [*columns_taken(library)]
    if library.trained_here:
        needed.insert(0, library.columns[library.target])
    lacking = [repr(name) for name in needed if matching_label(name, list(sample.columns)) is None]
    if not library.trained_here and len(library.categories.get(library.group, ())) > 1:
        lacking.append("a name of series that the network knows")
    if not lacking:
        return None
    return (
        f"the sample {sample.name!r} lacks {', '.join(lacking)}; its columns are "
        f"{', '.join(map(repr, sample.columns))}. Send a file instead. {input_needed(artifact) or ''}"
    ).rstrip()
