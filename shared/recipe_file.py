"""Writes recipes to ``recipe.yaml`` and reads them back.

The file has the recipe's name, every setting, and the class of each component. The class names serve human readers and
the digest and are never imported by name: reading back (``shared.recipes``) starts from the named recipe.
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

_RESUMABLE_LIMITS = (
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
"""The fields of ``Limits`` that may change when a run is resumed; the digest omits them."""
EXECUTION_SETTINGS = ("strategy", "compile")
"""Settings that change how a run computes but not what; a run can be resumed with other values of them."""
_MAX_ALIASES = 100


def to_mapping(recipe: Recipe) -> dict[str, Any]:
    """All settings of the recipe, in JSON types."""
    mapping: dict[str, Any] = json.loads(json.dumps(_settings(recipe), default=str))
    return mapping


def component_classes(recipe: Recipe) -> dict[str, str]:
    """The class of every component, by its path in the recipe: ``{"model": "package.module.Class", ...}``."""
    return {path: f"{type(part).__module__}.{type(part).__qualname__}" for path, part in _components(recipe, "")}


def digest(recipe: Recipe) -> str:
    """SHA-256 of the settings that determine the weights.

    It omits everything that may change when a run is resumed: its length, when and in which batches it validates, what
    it logs and saves, the micro-batch, the loader threads, the strategy and compilation. It includes the class names of
    the components, because equal settings of two classes build different components, but not their modules, so that a
    class can be moved.
    """
    mapping = to_mapping(recipe)
    for name in _RESUMABLE_LIMITS:
        mapping["limits"].pop(name)
    for name in EXECUTION_SETTINGS:
        mapping.pop(name)
    if mapping["ema_decay"] is None:
        mapping.pop("ema_decay")
    # Recipes from before a setting existed keep their digests.
    mapping["input"] = {name: value for name, value in mapping["input"].items() if value is not None}
    named = {
        path: type(part).__name__ for path, part in _components(recipe, "") if not path.startswith(EXECUTION_SETTINGS)
    }
    return hashlib.sha256(json.dumps([_floats_as_integers(mapping), named], sort_keys=True).encode()).hexdigest()


def _floats_as_integers(value: Any) -> Any:
    """The same settings with 1 in place of 1.0, because a float that was given as an int is read back as a float."""
    if isinstance(value, dict):
        return {name: _floats_as_integers(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_floats_as_integers(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def save_recipe(path: Path, recipe: Recipe, *, app: str, name: str, digest_at_start: str | None = None) -> None:
    """Writes ``recipe.yaml``: the application, the recipe's name and digest, all resolved settings and the classes.

    ``digest_at_start`` is the digest of a run that an earlier version began; its checkpoints contain that digest.
    """
    document = {
        "app": app,
        "name": name,
        "digest": digest_at_start or digest(recipe),
        "recipe": to_mapping(recipe),
        "classes": component_classes(recipe),
    }
    write_whole(path, yaml.safe_dump(document, sort_keys=False))


class _LimitedAliasLoader(yaml.SafeLoader):
    """Reads at most a hundred aliases, which PyYAML writes for repeated values, and none inside an anchored value.

    Nested aliases could expand a few lines to gigabytes.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._aliases = self._open_anchors = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            self._aliases += 1
            if self._open_anchors or self._aliases > _MAX_ALIASES:
                raise yaml.YAMLError("it has nested aliases (*name) or too many aliases; write out their values")
            return super().compose_node(parent, index)
        has_anchor = self.peek_event().anchor is not None  # type: ignore[no-untyped-call]
        self._open_anchors += has_anchor
        node = super().compose_node(parent, index)
        self._open_anchors -= has_anchor
        return node


def read_recipe_file(path: Path) -> dict[str, Any]:
    """The document in a ``recipe.yaml``: ``app``, ``name``, ``digest``, ``recipe`` and ``classes``, in JSON types.

    Raises ``InvalidInputError`` if the file is missing, is not YAML or is not a recipe file.
    """
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), _LimitedAliasLoader)
    except FileNotFoundError as error:
        raise InvalidInputError(
            f"{path} does not exist; the directory of a run contains recipe.yaml once training has started"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:  # ValueError: an invalid date
        raise InvalidInputError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict) or not {"app", "name", "recipe"} <= document.keys():
        raise InvalidInputError(f"{path} is not a recipe file; expected the keys app, name, digest, recipe")
    return document


def class_mismatch(recipe: Recipe, classes: Mapping[str, str]) -> str | None:
    """Describes the first component whose class differs from the recorded one: ``data is a Luna16, not a Phantoms``.

    Returns None if there is no difference.
    """
    for path, part in _components(recipe, ""):
        recorded = class_name(classes.get(path, ""))
        if recorded and recorded != type(part).__name__:
            return f"{path or 'recipe'} is a {type(part).__name__}, not a {recorded}"
    return None


def class_name(recorded: str) -> str:
    """The class name in a recorded class, without its module."""
    return recorded.rsplit(".", 1)[-1]


def comparable_settings(part: Any, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a recipe, in JSON types, for comparison with the ``recorded`` ones.

    It omits settings that ``recorded`` does not have if they have their default values, so that a run from before such
    a setting existed can be resumed.
    """
    kept: dict[str, Any] = {}
    for field in fields(part):
        name, value = field.name, getattr(part, field.name)
        if name not in recorded and value == _default(field, None):
            continue
        nested = recorded.get(name)
        if is_dataclass(value) and isinstance(nested, Mapping):
            kept[name] = comparable_settings(value, nested)
        else:
            kept[name] = json.loads(json.dumps(_settings(value), default=str))
    return kept


def differences(found: Mapping[str, Any], expected: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yields a phrase for each difference between the settings of two recipes: ``seed is 1, not 0``."""
    for name in {**found, **expected}:
        value, wanted = found.get(name), expected.get(name)
        if isinstance(value, Mapping) and isinstance(wanted, Mapping):
            yield from differences(value, wanted, f"{path}{name}.")
        elif value != wanted and not (path == "limits." and name in _RESUMABLE_LIMITS):
            yield f"{path}{name} is {_brief(value)}, not {_brief(wanted)}"


def _brief(value: Any) -> Any:
    """The value for a sentence. Nested settings, which could fill a page, are shown as ``given``."""
    return "given" if isinstance(value, Mapping) else value


@overload
def from_mapping(base: type[Settings], mapping: Mapping[str, Any], path: str = "") -> Settings: ...
@overload
def from_mapping(base: Settings, mapping: Mapping[str, Any], path: str = "") -> Settings: ...
def from_mapping(base: Any, mapping: Mapping[str, Any], path: str = "") -> Any:
    """``base`` with the settings in ``mapping`` (JSON types), each checked against the type of its field.

    Components keep their classes in ``base`` or, if ``base`` is a class, its default ones; class names in a file are
    never imported. Raises ``InvalidInputError`` for a setting that ``base`` does not have or whose value does not fit.
    """
    kind = base if isinstance(base, type) else type(base)
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}
    if unknown := sorted(mapping.keys() - known.keys()):
        raise InvalidInputError(f"{kind.__name__} has no setting {path}{', '.join(unknown)}; it has {', '.join(known)}")
    values = {}
    for name, value in mapping.items():
        current = _default(known[name], hints[name]) if base is kind else getattr(base, name)
        if isinstance(value, Mapping) and is_dataclass(current):
            values[name] = from_mapping(current, value, f"{path}{name}.")
        else:
            values[name] = _checked(hints[name], value, f"{path}{name}")
    try:
        made: Any = kind(**values) if base is kind else replace(base, **values)
    except TypeError as error:
        raise InvalidInputError(f"{path.rstrip('.') or kind.__name__}: {error}") from error
    return made


def _settings(value: Any) -> Any:
    """Converts a dataclass to a dictionary of its fields, recursively."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _settings(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {name: _settings(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_settings(part) for part in value]
    return value


def _components(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yields a dataclass and the dataclasses nested in it, with their paths."""
    if is_dataclass(value) and not isinstance(value, type):
        yield path, value
        for field in fields(value):
            yield from _components(getattr(value, field.name), f"{path}.{field.name}" if path else field.name)


def _default(field: Field[Any], hint: Any) -> Any:
    if isinstance(hint, type) and is_dataclass(hint):
        return hint
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _checked(hint: Any, value: Any, setting: str) -> Any:
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        faults = "; ".join(".".join(map(str, e["loc"])) + f" {e['msg']}" for e in error.errors())
        raise InvalidInputError(f"{setting} is {value!r}: {faults.strip()}") from error
