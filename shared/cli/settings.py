"""Settings of recipes and data sets on the command line, each with its type, by tyro."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, field, fields, is_dataclass, make_dataclass, replace
from difflib import get_close_matches
from typing import Any, NoReturn, TypeVar, get_type_hints

import tyro

from shared.errors import InvalidInputError
from shared.recipe import DataConfig, Recipe

Settings = TypeVar("Settings")
# A component was chosen already; its settings are settings like any other.
_FLAT = (tyro.conf.AvoidSubcommands,)
_TRAIN = ("recipe", "data", "out", "optimizer", "schedule", "strategy", "device")
"""What ``trivium train`` takes beside settings."""
_ELSEWHERE = {"lr": "learning-rate", "num-workers": "loader-threads"}
"""What other frameworks call a setting."""


def parse_recipe(
    recipe: Recipe,
    data: type[DataConfig] | None,
    words: Sequence[str],
    prog: str,
    others: Mapping[str, type[Any]] | None = None,
) -> Recipe:
    """``recipe`` with the settings in ``words``, and with its data set replaced by one of class ``data``.

    So are ``others`` of its components, by name, where another class than the recipe's is given.
    """
    chosen = {} if data is None else {"data": _unset(data)}
    for name, other in (others or {}).items():
        if other is not type(getattr(recipe, name)):
            chosen[name] = other()
    kind, hints = type(recipe), get_type_hints(type(recipe))
    values = {one.name: chosen.get(one.name, getattr(recipe, one.name)) for one in fields(kind)}
    parsed = _parse(kind, hints, values, words, prog, beside=_TRAIN)
    return replace(recipe, **{name: getattr(parsed, name) for name in values})


def parse_data(data: type[DataConfig], words: Sequence[str], prog: str) -> DataConfig:
    """A data set of class ``data`` with the settings ``--data.NAME VALUE`` in ``words``."""
    parsed: DataConfig = _parse(data, {}, {"data": _unset(data)}, words, prog).data
    return parsed


def _parse(
    kind: type,
    hints: dict[str, Any],
    values: dict[str, Any],
    words: Sequence[str],
    prog: str,
    beside: Sequence[str] = (),
) -> Any:
    """Parses a dataclass whose components have the classes of the values, which protocols as types do not tell."""
    settings = [
        (name, type(value) if is_dataclass(value) else hints[name], field(default=value))
        for name, value in values.items()
    ]
    made = make_dataclass(kind.__name__, settings, frozen=True, kw_only=True)
    made.__doc__ = kind.__doc__
    parsed: Any
    parsed, unknown = tyro.cli(made, args=list(words), prog=prog, config=_FLAT, return_unknown_args=True)
    if unknown:
        _refuse_unknown(unknown[0], [*_names(values), *beside], prog)
    return parsed


def _names(values: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The names of all settings as flags have them: ``limits.log-every``."""
    for name, value in values.items():
        flag = f"{path}{name.replace('_', '-')}"
        if is_dataclass(value):
            yield from _names({one.name: getattr(value, one.name) for one in fields(value)}, f"{flag}.")
        else:
            yield flag


def _refuse_unknown(word: str, known: Sequence[str], prog: str) -> NoReturn:
    """Refuses a setting that is not there, with those that may have been meant."""
    name = word.partition("=")[0].lstrip("-").replace("_", "-")
    group, _, last = name.rpartition(".")
    beside = [flag for flag in known if group and flag.startswith(f"{group}.")]
    ends = {flag: flag.rpartition(".")[2] for flag in beside or known}
    near = get_close_matches(_ELSEWHERE.get(last, last), ends.values(), n=2)
    close = get_close_matches(name, [flag for flag in known if ("." in flag) == bool(group)], cutoff=0.8)
    meant = close or [flag for flag, end in ends.items() if end in near] or beside
    hint = f"; there is --{', --'.join(meant)}" if meant else ""
    if group == "data" and not close:
        hint += "; those of another data set need --data NAME"
    raise InvalidInputError(f"there is no setting {word}{hint}; `{prog} --help` lists all")


def _unset(kind: type[Any]) -> Any:
    """A config of class ``kind`` with its defaults; what has none must be given on the command line."""
    config = object.__new__(kind)
    for one in fields(kind):
        value = one.default_factory() if one.default_factory is not MISSING else one.default
        object.__setattr__(config, one.name, tyro.MISSING if value is MISSING else value)
    return config
