"""Settings of recipes and data sets on the command line, each with its type, by tyro."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, field, fields, is_dataclass, make_dataclass, replace
from typing import Any, TypeVar, get_type_hints

import tyro

from shared.recipe import DataConfig, Recipe
from shared.strategy import StrategyConfig

Settings = TypeVar("Settings")
# A component was chosen already; its settings are settings like any other.
_FLAT = (tyro.conf.AvoidSubcommands,)


def parse_recipe(
    recipe: Recipe,
    data: type[DataConfig] | None,
    words: Sequence[str],
    prog: str,
    strategy: type[StrategyConfig] | None = None,
) -> Recipe:
    """``recipe`` with the settings in ``words``, and with its data set replaced by one of class ``data``.

    So its strategy, where another class than the recipe's is given.
    """
    chosen = {} if data is None else {"data": _unset(data)}
    if strategy is not None and strategy is not type(recipe.strategy):
        chosen["strategy"] = strategy()
    kind, hints = type(recipe), get_type_hints(type(recipe))
    values = {one.name: chosen.get(one.name, getattr(recipe, one.name)) for one in fields(kind)}
    parsed = _parse(kind, hints, values, words, prog)
    return replace(recipe, **{name: getattr(parsed, name) for name in values})


def parse_data(data: type[DataConfig], words: Sequence[str], prog: str) -> DataConfig:
    """A data set of class ``data`` with the settings ``--data.NAME VALUE`` in ``words``."""
    parsed: DataConfig = _parse(data, {}, {"data": _unset(data)}, words, prog).data
    return parsed


def _parse(kind: type, hints: dict[str, Any], values: dict[str, Any], words: Sequence[str], prog: str) -> Any:
    """Parses a dataclass whose components have the classes of the values, which protocols as types do not tell."""
    settings = [
        (name, type(value) if is_dataclass(value) else hints[name], field(default=value))
        for name, value in values.items()
    ]
    made = make_dataclass(kind.__name__, settings, frozen=True, kw_only=True)
    made.__doc__ = kind.__doc__
    return tyro.cli(made, args=list(words), prog=prog, config=_FLAT)


def _unset(kind: type[Any]) -> Any:
    """A config of class ``kind`` with its defaults; what has none must be given on the command line."""
    config = object.__new__(kind)
    for one in fields(kind):
        value = one.default_factory() if one.default_factory is not MISSING else one.default
        object.__setattr__(config, one.name, tyro.MISSING if value is MISSING else value)
    return config
