"""A recipe's way to ``recipe.yaml`` and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from shared.atomic_files import write_whole
from shared.errors import InvalidInputError
from shared.recipe import Recipe

Settings = TypeVar("Settings")


def to_mapping(recipe: Recipe) -> dict[str, Any]:
    """The recipe in JSON types."""
    mapping: dict[str, Any] = json.loads(json.dumps(asdict(recipe), default=str))
    return mapping


def digest(recipe: Recipe) -> str:
    """SHA-256 of what decides the weights: everything but the limits on how long the run goes on."""
    mapping = to_mapping(recipe)
    for name in ("epochs", "steps", "minutes", "patience", "log_every", "checkpoint_every", "keep", "loader_threads"):
        mapping["limits"].pop(name)
    return hashlib.sha256(json.dumps(mapping, sort_keys=True).encode()).hexdigest()


def save_recipe(path: Path, recipe: Recipe, *, app: str, name: str) -> None:
    """Writes ``recipe.yaml``: the application, the recipe's name and digest, and every setting as resolved."""
    document = {"app": app, "name": name, "digest": digest(recipe), "recipe": to_mapping(recipe)}
    write_whole(path, yaml.safe_dump(document, sort_keys=False))


def read_recipe_file(path: Path) -> dict[str, Any]:
    """The document in a ``recipe.yaml``: ``app``, ``name``, ``digest`` and ``recipe``, in JSON types."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidInputError(
            f"{path} does not exist; a run's directory holds recipe.yaml once training has begun"
        ) from error
    if not isinstance(document, dict) or not {"app", "name", "recipe"} <= document.keys():
        raise InvalidInputError(f"{path} is not a recipe file; expected the keys app, name, digest, recipe")
    return document


def from_mapping(base: Settings | type[Settings], mapping: Mapping[str, Any], path: str = "") -> Settings:
    """``base`` with the settings in ``mapping`` (JSON types), each checked against its field's type.

    Components keep the classes that they have in ``base``, or by default where it is a class; the class names in a file
    are never imported. Refuses a setting that ``base`` does not have.
    """
    kind = base if isinstance(base, type) else type(base)
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(mapping.keys() - known.keys()):
        raise InvalidInputError(f"{kind.__name__} has no setting {path}{', '.join(unknown)}; it has {', '.join(known)}")
    values = {}
    for name, value in mapping.items():
        now = _default(known[name], hints[name]) if base is kind else getattr(base, name)
        if isinstance(value, Mapping) and is_dataclass(now):
            values[name] = from_mapping(now, value, f"{path}{name}.")
        else:
            values[name] = _checked(hints[name], value, f"{path}{name}")
    made: Any = kind(**values) if base is kind else replace(base, **values)  # type: ignore[type-var]
    return made  # type: ignore[no-any-return]


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
