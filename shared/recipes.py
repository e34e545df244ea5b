"""An application's recipes and data sets: by name, from a recipe file, from what a run or an artifact recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from shared.app import App
from shared.errors import InvalidInputError
from shared.recipe import DataConfig, Recipe
from shared.recipe_file import from_mapping, read_recipe_file


def choose_recipe(app: App, chosen: str) -> tuple[str, Recipe]:
    """The recipe with the name ``chosen``, or the one in the file of that name, and what it is called."""
    if Path(chosen).suffix in (".yaml", ".yml"):
        document = read_recipe_file(Path(chosen))
        return str(document["name"]), recipe_of(app, document)
    return chosen, named_recipe(app, chosen)


def named_recipe(app: App, name: str) -> Recipe:
    """The recipe called ``name``; refuses an unknown one."""
    recipes = app.recipes()
    if name not in recipes:
        raise InvalidInputError(f"{app.name} has no recipe {name!r}; it has {', '.join(recipes)}")
    return recipes[name]()


def named_data_set(app: App, name: str) -> type[DataConfig]:
    """The config class of the data set called ``name``; refuses an unknown one."""
    known = app.data_sets() if app.data_sets is not None else {}
    if name not in known:
        raise InvalidInputError(f"{app.name} has no data set {name!r}; it has {', '.join(known) or 'none'}")
    return known[name]


def recipe_of(app: App, document: Mapping[str, Any], data: DataConfig | None = None) -> Recipe:
    """The recipe in a ``recipe.yaml`` document, with ``data`` in place of the recorded data set where it is given.

    Reading begins with the named recipe; for an imported model, with one whose network takes the recorded settings.
    """
    if document["app"] != app.name:
        raise InvalidInputError(f"the run belongs to {document['app']}, not to {app.name}")
    settings = dict(document["recipe"])
    recorded = settings.pop("data", None)
    recipe = _read_beside(app, document, settings)
    if data is not None:
        return replace(recipe, data=data)
    return recipe if recorded is None else replace(recipe, data=_read_data(app, recipe.data, recorded))


def _read_beside(app: App, document: Mapping[str, Any], settings: Mapping[str, Any]) -> Recipe:
    recipes, name = app.recipes(), str(document["name"])
    if name in recipes or settings.keys() - {"model", "input"}:
        return from_mapping(named_recipe(app, name), settings)
    for make in recipes.values():
        try:
            return from_mapping(make(), settings)
        except InvalidInputError:
            continue
    raise InvalidInputError(f"no recipe of {app.name} has a network with the settings of {name}")


def _read_data(app: App, base: DataConfig, recorded: Mapping[str, Any]) -> DataConfig:
    """The data set that was recorded: the named recipe's own, or the one of the application with these settings."""
    try:
        return from_mapping(base, recorded)
    except InvalidInputError:
        for kind in (app.data_sets() if app.data_sets is not None else {}).values():
            try:
                made: DataConfig = from_mapping(kind, recorded)  # type: ignore[arg-type]
                return made
            except (InvalidInputError, TypeError):
                continue
        raise
