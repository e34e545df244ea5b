"""Named recipes. All train on synthetic series by default; ``--data`` selects another data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from apps.finance.datasets.synthetic import Synthetic
from apps.finance.datasets.table import Table
from apps.finance.models.settings import FinanceModel
from apps.finance.models.stored import stored_settings
from apps.finance.task import FinanceTask
from apps.finance.types import FinanceInput
from shared.errors import InvalidInputError
from shared.optimizers import AdamW, CosineRestarts
from shared.recipe import DataConfig, Limits, Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class FinanceRecipe(Recipe):
    """A recipe of the finance application."""

    model: FinanceModel
    data: DataConfig
    task: FinanceTask
    input: FinanceInput


def tiny() -> FinanceRecipe:
    """For tests: trains in seconds on one core."""
    return FinanceRecipe(
        model=FinanceModel(hidden=8, hidden_continuous=4, heads=1),
        data=Synthetic(series=4, validation_series=2, rows=400, stride=4),
        task=FinanceTask(),
        input=FinanceInput(context=24, horizon=4),
        optimizer=AdamW(learning_rate=3e-3, weight_decay=1e-4),
        schedule=CosineRestarts(warmup_steps=3),
        precision="fp32",
        limits=Limits(epochs=2, batch=32, evaluation_batch=128, checkpoint_every=5, log_every=5),
    )


def small() -> FinanceRecipe:
    """Trains in about eight minutes on one core of a busy machine."""
    return FinanceRecipe(
        model=FinanceModel(),
        data=Synthetic(),
        task=FinanceTask(),
        input=FinanceInput(),
        optimizer=AdamW(learning_rate=2e-3, weight_decay=1e-4),
        schedule=CosineRestarts(warmup_steps=100, period=4, floor=0.02),
        precision="fp32",
        limits=Limits(epochs=4, minutes=30, batch=64, evaluation_batch=512, min_delta=1e-4, log_every=50),
    )


def large() -> FinanceRecipe:
    """For minutes on one GPU; not yet measured on a GPU."""
    return FinanceRecipe(
        model=FinanceModel(hidden=32, hidden_continuous=16),
        data=Synthetic(series=1500, validation_series=100, rows=4000),
        task=FinanceTask(),
        input=FinanceInput(context=96),
        optimizer=AdamW(learning_rate=1.5e-3, weight_decay=1e-4),
        schedule=CosineRestarts(warmup_steps=300, period=10, floor=0.02),
        precision="fp32",
        limits=Limits(
            epochs=10,
            minutes=6.5,
            batch=512,
            evaluation_batch=2048,
            min_delta=1e-4,
            log_every=100,
            checkpoint_every=1000,
            loader_threads=4,
        ),
    )


def full() -> FinanceRecipe:
    """``large`` on more and longer series, for an hour on a GPU."""
    recipe = large()
    return replace(
        recipe,
        data=Synthetic(series=4000, validation_series=100, rows=6000),
        schedule=CosineRestarts(warmup_steps=300, period=12, floor=0.02),
        limits=replace(recipe.limits, epochs=12, minutes=60),
    )


def fine_tuned(recipe: FinanceRecipe, settings: Mapping[str, Any]) -> FinanceRecipe:
    """``recipe`` with the settings of the network over a table's columns that ``init`` names, to continue on another
    table.

    If the recipe's table names no covariates or no value, it takes those of the network. Raises InvalidInputError if it
    names other covariates.
    """
    model, input = stored_settings(settings)
    library, data = input.library, recipe.data
    if library is None or not library.trained_here:
        return recipe
    known = tuple(library.columns[name] for name in library.known)
    observed = tuple(column for column in library.covariates if column not in known)
    if isinstance(data, Table):
        if (data.known or data.observed) and ({*data.known}, {*data.observed}) != ({*known}, {*observed}):
            raise InvalidInputError(
                f"the network in {recipe.init} takes {', '.join(known) or 'no column'} as known ahead of time and "
                f"{', '.join(observed) or 'none'} as observed; leave out data.known and data.observed, or name the "
                "same columns"
            )
        data = replace(data, known=known, observed=observed, value=data.value or library.columns[library.target])
    return replace(recipe, model=model, data=data, input=replace(input, library=replace(library, further=True)))


RECIPES: dict[str, Callable[[], FinanceRecipe]] = {"tiny": tiny, "small": small, "large": large, "full": full}
