"""A recipe's way to ``recipe.yaml`` and back.

The file holds the recipe's name, every setting, and the class of each component. The classes are for the reader and
for the digest; they are never imported by name: reading back (``shared.recipes``) starts from the named recipe.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints, overload

import yaml
from pydantic import TypeAdapter, ValidationError

from shared.atomic_files import write_whole
from shared.errors import InvalidInputError
from shared.recipe import Recipe

Settings = TypeVar("Settings")

_HOW_LONG = (
    "epochs",
    "steps",
    "minutes",
    "micro_batch",
    "evaluation_batch",
    "validate_every",
    "patience",
    "min_delta",
    "log_every",
    "checkpoint_every",
    "keep",
    "loader_threads",
)
HOW_COMPUTED = ("strategy", "compile")
"""Settings by which a run computes the same in another way; it may be resumed with others."""
_MAX_ALIASES = 100


def to_mapping(recipe: Recipe) -> dict[str, Any]:
    """Every setting of the recipe, in JSON types."""
    mapping: dict[str, Any] = json.loads(json.dumps(_settings(recipe), default=str))
    return mapping


def component_classes(recipe: Recipe) -> dict[str, str]:
    """The class of every component by its path: ``{"model": "package.module.Class", ...}``."""
    return {path: f"{type(part).__module__}.{type(part).__qualname__}" for path, part in _components(recipe, "")}


def digest(recipe: Recipe) -> str:
    """SHA-256 of what decides the weights: all settings but how long the run goes on, when and in which portions it is
    validated, in how many parts it computes and whether it is compiled.

    The names of the components' classes are among it, for equal settings of two classes make two things; the modules
    are not, so that a class may move.
    """
    mapping = to_mapping(recipe)
    for name in _HOW_LONG:
        mapping["limits"].pop(name)
    for name in HOW_COMPUTED:
        mapping.pop(name)
    if mapping["ema_decay"] is None:
        mapping.pop("ema_decay")
    # Recipes from before there was a setting keep their digests.
    mapping["input"] = {name: value for name, value in mapping["input"].items() if value is not None}
    named = {path: type(part).__name__ for path, part in _components(recipe, "") if not path.startswith(HOW_COMPUTED)}
    return hashlib.sha256(json.dumps([_numbers_alike(mapping), named], sort_keys=True).encode()).hexdigest()


def _numbers_alike(value: Any) -> Any:
    """The same settings with 1.0 as 1: a float that was given as an int is read back from a file as a float."""
    if isinstance(value, dict):
        return {name: _numbers_alike(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_numbers_alike(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def save_recipe(path: Path, recipe: Recipe, *, app: str, name: str, begun_under: str | None = None) -> None:
    """Writes ``recipe.yaml``: the application, the recipe's name and digest, every setting as resolved, the classes.

    ``begun_under`` is the digest of a run that an earlier version began, which its checkpoints go by.
    """
    document = {
        "app": app,
        "name": name,
        "digest": begun_under or digest(recipe),
        "recipe": to_mapping(recipe),
        "classes": component_classes(recipe),
    }
    write_whole(path, yaml.safe_dump(document, sort_keys=False))


class _FewAliases(yaml.SafeLoader):
    """Reads aliases, as PyYAML writes them for what stands twice, but none of what holds others, and at most a hundred.

    By such a few lines stand for gigabytes.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._aliases = self._named = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            self._aliases += 1
            if self._named or self._aliases > _MAX_ALIASES:
                raise yaml.YAMLError("it holds aliases (*name) of aliases, or too many; write out what they stand for")
            return super().compose_node(parent, index)
        named = self.peek_event().anchor is not None  # type: ignore[no-untyped-call]
        self._named += named
        node = super().compose_node(parent, index)
        self._named -= named
        return node


def read_recipe_file(path: Path) -> dict[str, Any]:
    """The document in a ``recipe.yaml``: ``app``, ``name``, ``digest``, ``recipe`` and ``classes``, in JSON types."""
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), _FewAliases)
    except FileNotFoundError as error:
        raise InvalidInputError(
            f"{path} does not exist; a run's directory holds recipe.yaml once training has begun"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:  # ValueError: a date that is none
        raise InvalidInputError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict) or not {"app", "name", "recipe"} <= document.keys():
        raise InvalidInputError(f"{path} is not a recipe file; expected the keys app, name, digest, recipe")
    return document


def class_mismatch(recipe: Recipe, classes: Mapping[str, str]) -> str | None:
    """The first component whose class has not the recorded name, in words: ``data is a Luna16, not a Phantoms``."""
    for path, part in _components(recipe, ""):
        recorded = class_name(classes.get(path, ""))
        if recorded and recorded != type(part).__name__:
            return f"{path or 'recipe'} is a {type(part).__name__}, not a {recorded}"
    return None


def class_name(recorded: str) -> str:
    """The name alone of a class recorded with its module."""
    return recorded.rsplit(".", 1)[-1]


def settings_beside(part: Any, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a recipe, in JSON types, without those that ``recorded`` knows nothing of and that have their
    defaults: a run from before there was such a setting goes on."""
    kept: dict[str, Any] = {}
    for field in fields(part):
        name, value = field.name, getattr(part, field.name)
        if name not in recorded and value == _default(field, None):
            continue
        inside = recorded.get(name)
        if is_dataclass(value) and isinstance(inside, Mapping):
            kept[name] = settings_beside(value, inside)
        else:
            kept[name] = json.loads(json.dumps(_settings(value), default=str))
    return kept


def differences(one: Mapping[str, Any], other: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """How the settings of one recipe differ from those of another, a phrase each: ``seed is 1, not 0``."""
    for name in {**one, **other}:
        here, there = one.get(name), other.get(name)
        if isinstance(here, Mapping) and isinstance(there, Mapping):
            yield from differences(here, there, f"{path}{name}.")
        elif here != there and not (path == "limits." and name in _HOW_LONG):
            yield f"{path}{name} is {_brief(here)}, not {_brief(there)}"


def _brief(value: Any) -> Any:
    """A setting as a sentence names it: of settings within it, which may fill a page, only that they are there."""
    return "given" if isinstance(value, Mapping) else value


@overload
def from_mapping(base: type[Settings], mapping: Mapping[str, Any], path: str = "") -> Settings: ...
@overload
def from_mapping(base: Settings, mapping: Mapping[str, Any], path: str = "") -> Settings: ...
def from_mapping(base: Any, mapping: Mapping[str, Any], path: str = "") -> Any:
    """``base`` with the settings in ``mapping`` (JSON types), each checked against its field's type.

    Components keep the classes that they have in ``base``, or by default where it is a class; the class names in a file
    are never imported. Refuses a setting that ``base`` does not have.
    """
    kind = base if isinstance(base, type) else type(base)
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}
    if unknown := sorted(mapping.keys() - known.keys()):
        raise InvalidInputError(f"{kind.__name__} has no setting {path}{', '.join(unknown)}; it has {', '.join(known)}")
    values = {}
    for name, value in mapping.items():
        now = _default(known[name], hints[name]) if base is kind else getattr(base, name)
        if isinstance(value, Mapping) and is_dataclass(now):
            values[name] = from_mapping(now, value, f"{path}{name}.")
        else:
            values[name] = _checked(hints[name], value, f"{path}{name}")
    try:
        made: Any = kind(**values) if base is kind else replace(base, **values)
    except TypeError as error:
        raise InvalidInputError(f"{path.rstrip('.') or kind.__name__}: {error}") from error
    return made


def _settings(value: Any) -> Any:
    """The fields of a dataclass by name, at every depth."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _settings(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {name: _settings(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_settings(part) for part in value]
    return value


def _components(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """A dataclass and those within it, with their paths."""
    if is_dataclass(value) and not isinstance(value, type):
        yield path, value
        for field in fields(value):
            yield from _components(getattr(value, field.name), f"{path}.{field.name}" if path else field.name)


def _default(field: Field[Any], hint: Any) -> Any:
    if isinstance(hint, type) and is_dataclass(hint):
        return hint
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _checked(hint: Any, value: Any, what: str) -> Any:
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        faults = "; ".join(".".join(map(str, e["loc"])) + f" {e['msg']}" for e in error.errors())
        raise InvalidInputError(f"{what} is {value!r}: {faults.strip()}") from error
