"""Parses the settings of recipes and data sets on the command line, with their types, by tyro."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, field, fields, is_dataclass, make_dataclass, replace
from difflib import get_close_matches
from typing import Any, NoReturn, TypeVar, get_type_hints

import tyro

from shared.app import App
from shared.errors import InvalidInputError
from shared.recipe import DataConfig, Recipe
from shared.recipes import named_data_set

Settings = TypeVar("Settings")
# The components' classes are already chosen, so their settings need no subcommands.
_TYRO_CONFIG = (tyro.conf.AvoidSubcommands,)
_TRAIN_OPTIONS = ("recipe", "data", "out", "optimizer", "schedule", "strategy", "device")
"""The options of ``trivium train`` that are not settings of the recipe."""
_SETTING_ALIASES = {"lr": "learning-rate", "num-workers": "loader-threads"}
"""Names of settings in other frameworks, and our names for them."""


def parse_recipe(
    recipe: Recipe,
    data: type[DataConfig] | None,
    words: Sequence[str],
    prog: str,
    components: Mapping[str, type[Any]] | None = None,
) -> Recipe:
    """Returns ``recipe`` with the settings in ``words``, and with a data set of class ``data`` if one is given.

    ``components`` are further classes by recipe field; each replaces the recipe's component if its class differs.
    """
    replaced = {} if data is None else {"data": _defaults(data)}
    for name, component_class in (components or {}).items():
        if component_class is not type(getattr(recipe, name)):
            replaced[name] = component_class()
    recipe_class, hints = type(recipe), get_type_hints(type(recipe))
    values = {
        setting.name: replaced.get(setting.name, getattr(recipe, setting.name)) for setting in fields(recipe_class)
    }
    parsed = _parse(recipe_class, hints, values, words, prog, other_options=_TRAIN_OPTIONS)
    return replace(recipe, **{name: getattr(parsed, name) for name in values})


def parse_data(app: App, name: str, words: Sequence[str], command: str) -> DataConfig:
    """Returns the application's data set ``name`` with the settings ``--data.NAME VALUE`` in ``words``.

    ``command`` is the part of the command line before ``--data``, without ``trivium``.
    """
    data = named_data_set(app, name)
    parsed: DataConfig = _parse(data, {}, {"data": _defaults(data)}, words, f"trivium {command} --data {name} --").data
    return parsed


def _parse(
    config_class: type,
    hints: dict[str, Any],
    values: dict[str, Any],
    words: Sequence[str],
    prog: str,
    other_options: Sequence[str] = (),
) -> Any:
    """Parses a dataclass. Components have the classes of their values: the declared types are protocols."""
    settings = [
        (name, type(value) if is_dataclass(value) else hints[name], field(default=value))
        for name, value in values.items()
    ]
    temporary_class = make_dataclass(config_class.__name__, settings, frozen=True, kw_only=True)
    temporary_class.__doc__ = config_class.__doc__
    parsed: Any
    parsed, unknown = tyro.cli(
        temporary_class, args=list(words), prog=prog, config=_TYRO_CONFIG, return_unknown_args=True
    )
    if unknown:
        _refuse_unknown(unknown[0], [*_flag_names(values), *other_options], prog)
    return parsed


def _flag_names(values: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yields the names of all settings as in flags: ``limits.log-every``."""
    for name, value in values.items():
        flag = f"{path}{name.replace('_', '-')}"
        if is_dataclass(value):
            yield from _flag_names({part.name: getattr(value, part.name) for part in fields(value)}, f"{flag}.")
        else:
            yield flag


def _refuse_unknown(word: str, known: Sequence[str], prog: str) -> NoReturn:
    """Raises ``InvalidInputError`` for an unknown setting, with suggestions."""
    name = word.partition("=")[0].lstrip("-").replace("_", "-")
    group, _, last = name.rpartition(".")
    siblings = [flag for flag in known if group and flag.startswith(f"{group}.")]
    last_parts = {flag: flag.rpartition(".")[2] for flag in siblings or known}
    near_parts = get_close_matches(_SETTING_ALIASES.get(last, last), last_parts.values(), n=2)
    close_flags = get_close_matches(name, [flag for flag in known if ("." in flag) == bool(group)], cutoff=0.8)
    suggestions = close_flags or [flag for flag, end in last_parts.items() if end in near_parts] or siblings
    hint = f"; there is --{', --'.join(suggestions)}" if suggestions else ""
    if group == "data" and not close_flags:
        hint += "; settings of another data set need --data NAME"
    raise InvalidInputError(f"there is no setting {word}{hint}; `{prog} --help` lists all")


def _defaults(config_class: type[Any]) -> Any:
    """A config of class ``config_class`` with its defaults; a field without one is required on the command line."""
    config = object.__new__(config_class)
    for setting in fields(config_class):
        value = setting.default_factory() if setting.default_factory is not MISSING else setting.default
        object.__setattr__(config, setting.name, tyro.MISSING if value is MISSING else value)
    return config
