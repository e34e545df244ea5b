"""Finds an application's recipes and data sets by name, or reads them from a recipe file, a run or an artifact."""

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
"""Classes that a run may record in place of the named recipe's own, besides the application's data sets."""


def choose_recipe(app: App, chosen: str) -> tuple[str, Recipe]:
    """The name and the recipe for ``chosen``, which is the name of a recipe or the path of a recipe file."""
    if Path(chosen).suffix in (".yaml", ".yml"):
        document = read_recipe_file(Path(chosen))
        return str(document["name"]), recipe_of(app, document)
    return chosen, named_recipe(app, chosen)


def named_recipe(app: App, name: str) -> Recipe:
    """The recipe with this name. Raises ``InvalidInputError`` for an unknown name."""
    recipes = app.recipes()
    if name not in recipes:
        raise InvalidInputError(f"{app.name} has no recipe {name!r}; it has {', '.join(recipes)}")
    return recipes[name]()


def with_initial_network(app: App, recipe: Recipe, chosen: Recipe) -> Recipe:
    """The recipe, adapted to the network that it starts from if that network is imported or was fitted to its data.

    ``chosen`` is the recipe before the user's settings were applied. Raises ``InvalidInputError`` if the user set
    something that the network determines.
    """
    if recipe.init is None or not (recipe.init / "recipe.yaml").is_file():
        return recipe
    document = read_recipe_file(recipe.init / "recipe.yaml")
    importer = app.importers().get(str(document["name"]))
    fine_tuned = app.fine_tuned if importer is None else importer.fine_tuned
    if fine_tuned is None or document["app"] != app.name:
        return recipe
    adapted = fine_tuned(recipe, document["recipe"])
    if overridden := [*_overridden("model", recipe, chosen, adapted), *_overridden("input", recipe, chosen, adapted)]:
        raise InvalidInputError(
            f"the network in {recipe.init} has its own {', '.join(overridden)}, which no setting changes; leave "
            f"{'it' if len(overridden) == 1 else 'them'} out"
        )
    return adapted


def _overridden(part: str, given: Recipe, chosen: Recipe, adapted: Recipe) -> list[str]:
    """The options for settings of ``model`` or ``input`` that the user set and that the adapted recipe overrides."""
    given_part, chosen_part, adapted_part = (getattr(recipe, part) for recipe in (given, chosen, adapted))
    return [
        f"--{part}.{field.name.replace('_', '-')}"
        for field in fields(given_part)
        if getattr(given_part, field.name) != getattr(chosen_part, field.name, None)
        and getattr(given_part, field.name) != getattr(adapted_part, field.name, None)
    ]


def named_data_set(app: App, name: str, recipe: Recipe | None = None) -> type[DataConfig]:
    """The config class of the data set with this name, for training ``recipe`` if that is given.

    Raises ``InvalidInputError`` for an unknown name, and for a data set that the recipe cannot train on.
    """
    known = _data_sets(app, recipe)
    if name not in known:
        user = app.name if recipe is None or recipe.data_sets is None else f"this recipe of {app.name}"
        raise InvalidInputError(f"{user} has no data set {name!r}; it has {', '.join(known) or 'none'}")
    return known[name]


def _data_sets(app: App, recipe: Recipe | None) -> Mapping[str, type[DataConfig]]:
    return app.data_sets() if recipe is None or recipe.data_sets is None else recipe.data_sets


def recipe_of(app: App, document: Mapping[str, Any], data: DataConfig | None = None) -> Recipe:
    """The recipe in a ``recipe.yaml`` document, with ``data``, if given, in place of the recorded data set.

    The settings are applied to the named recipe or, for an imported model, to one whose network accepts them. Raises
    ``InvalidInputError`` if the document belongs to another application or cannot be read back.
    """
    if document["app"] != app.name:
        raise InvalidInputError(f"the run belongs to {document['app']}, not to {app.name}")
    settings = dict(document["recipe"])
    recorded = settings.pop("data", None)
    recipe = _read_without_data(app, document, settings)
    classes: Mapping[str, str] = document.get("classes", {})
    if data is not None:
        return replace(recipe, data=data)
    if recorded is not None:
        recipe = replace(recipe, data=_read_data(app, recipe, recorded, class_name(classes.get("data", ""))))
    if mismatch := class_mismatch(recipe, classes):
        raise InvalidInputError(
            f"the recorded classes differ from those of {app.name}'s recipe {document['name']}, whose {mismatch}; use "
            "the recorded recipe from Python, where its classes are available"
        )
    return recipe


def _read_without_data(app: App, document: Mapping[str, Any], settings: Mapping[str, Any]) -> Recipe:
    recipes, name = app.recipes(), str(document["name"])
    if name in recipes or settings.keys() - {"model", "input"}:
        return _with_recorded_components(named_recipe(app, name), document.get("classes", {}), settings)
    importer = app.importers().get(name)
    if importer is not None and importer.recipe is not None:
        return importer.recipe(settings)
    for make in recipes.values():
        try:
            return from_mapping(make(), settings)
        except InvalidInputError:
            continue
    raise InvalidInputError(f"no recipe of {app.name} has a network with the settings of {name}")


def _with_recorded_components(base: Recipe, classes: Mapping[str, str], settings: Mapping[str, Any]) -> Recipe:
    """``base`` with the settings, and with the recorded optimizer, schedule and strategy if those are the runtime's."""
    remaining = dict(settings)
    for name, kinds in _COMPONENTS.items():
        recorded = class_name(classes.get(name, ""))
        kind = next((kind for kind in kinds if kind.__name__ == recorded), None)
        if kind is not None and kind is not type(getattr(base, name)):
            component: Any = from_mapping(kind, remaining.pop(name), f"{name}.")
            base = replace(base, **{name: component})
    return from_mapping(base, remaining)


def _read_data(app: App, recipe: Recipe, recorded: Mapping[str, Any], kind_name: str) -> DataConfig:
    """The recorded data set: that of the named recipe, or one that the recipe can train on and has these settings."""
    base, known = recipe.data, _data_sets(app, recipe)
    for kind in known.values():
        if kind.__name__ == kind_name != type(base).__name__:
            data: DataConfig = from_mapping(kind, recorded, "data.")
            return data
    try:
        return from_mapping(base, recorded)
    except InvalidInputError:
        for kind in known.values():
            try:
                matching: DataConfig = from_mapping(kind, recorded)
                return matching
            except (InvalidInputError, TypeError):
                continue
        raise
