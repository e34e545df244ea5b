"""An application's recipes and data sets: by name, from a recipe file, from what a run or an artifact recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from shared.app import App
from shared.errors import InvalidInputError
from shared.optimizers import OPTIMIZERS, SCHEDULES
from shared.recipe import DataConfig, Recipe
from shared.recipe_file import class_mismatch, class_name, from_mapping, read_recipe_file
from shared.strategy import DDP, FSDP, Auto

_COMPONENTS: dict[str, tuple[type[Any], ...]] = {
    "optimizer": tuple(OPTIMIZERS.values()),
    "schedule": tuple(SCHEDULES.values()),
    "strategy": (Auto, DDP, FSDP),
}
"""What may be recorded in place of the class that the named recipe has, besides the application's data sets."""


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


def with_initial_network(app: App, recipe: Recipe, chosen: Recipe) -> Recipe:
    """The recipe; with the network that it starts from, where that is of its own: imported, or fitted to its data.

    ``chosen`` is the recipe before any setting was given. Refuses settings that were given and are the network's.
    """
    if recipe.init is None or not (recipe.init / "recipe.yaml").is_file():
        return recipe
    document = read_recipe_file(recipe.init / "recipe.yaml")
    importer = (app.importers() if app.importers is not None else {}).get(str(document["name"]))
    fine_tuned = app.fine_tuned if importer is None else importer.fine_tuned
    if fine_tuned is None or document["app"] != app.name:
        return recipe
    made = fine_tuned(recipe, document["recipe"])
    if taken := [*_not_taken("model", recipe, chosen, made), *_not_taken("input", recipe, chosen, made)]:
        raise InvalidInputError(
            f"the network in {recipe.init} has its own {', '.join(taken)}, which no setting changes; leave "
            f"{'it' if len(taken) == 1 else 'them'} out"
        )
    return made


def _not_taken(part: str, given: Recipe, chosen: Recipe, made: Recipe) -> list[str]:
    """Settings of ``model`` or ``input`` that were given, and that the recipe that was made of them has otherwise."""
    asked, before, after = (getattr(recipe, part) for recipe in (given, chosen, made))
    return [
        f"--{part}.{field.name.replace('_', '-')}"
        for field in fields(asked)
        if getattr(asked, field.name) != getattr(before, field.name, None)
        and getattr(asked, field.name) != getattr(after, field.name, None)
    ]


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
    classes: Mapping[str, str] = document.get("classes", {})
    if data is not None:
        return replace(recipe, data=data)
    if recorded is not None:
        recipe = replace(recipe, data=_read_data(app, recipe.data, recorded, class_name(classes.get("data", ""))))
    if mismatch := class_mismatch(recipe, classes):
        raise InvalidInputError(
            f"the recipe cannot be read back from {app.name}'s recipe {document['name']}: there {mismatch}, as "
            "recorded; use it from Python, where its classes are at hand"
        )
    return recipe


def _read_beside(app: App, document: Mapping[str, Any], settings: Mapping[str, Any]) -> Recipe:
    recipes, name = app.recipes(), str(document["name"])
    if name in recipes or settings.keys() - {"model", "input"}:
        return _with_recorded_components(named_recipe(app, name), document.get("classes", {}), settings)
    importer = (app.importers() if app.importers is not None else {}).get(name)
    if importer is not None and importer.recipe is not None:
        return importer.recipe(settings)
    for make in recipes.values():
        try:
            return from_mapping(make(), settings)
        except InvalidInputError:
            continue
    raise InvalidInputError(f"no recipe of {app.name} has a network with the settings of {name}")


def _with_recorded_components(base: Recipe, classes: Mapping[str, str], settings: Mapping[str, Any]) -> Recipe:
    """``base`` with the settings; with another optimizer, schedule or strategy of the runtime where it was recorded."""
    left = dict(settings)
    for name, kinds in _COMPONENTS.items():
        recorded = class_name(classes.get(name, ""))
        kind = next((kind for kind in kinds if kind.__name__ == recorded), None)
        if kind is not None and kind is not type(getattr(base, name)):
            component: Any = from_mapping(kind, left.pop(name), f"{name}.")
            base = replace(base, **{name: component})
    return from_mapping(base, left)


def _read_data(app: App, base: DataConfig, recorded: Mapping[str, Any], kind_name: str) -> DataConfig:
    """The data set that was recorded: the named recipe's own, or the one of the application with these settings."""
    for kind in (app.data_sets() if app.data_sets is not None else {}).values():
        if kind.__name__ == kind_name != type(base).__name__:
            found: DataConfig = from_mapping(kind, recorded, "data.")
            return found
    try:
        return from_mapping(base, recorded)
    except InvalidInputError:
        for kind in (app.data_sets() if app.data_sets is not None else {}).values():
            try:
                made: DataConfig = from_mapping(kind, recorded)
                return made
            except (InvalidInputError, TypeError):
                continue
        raise
