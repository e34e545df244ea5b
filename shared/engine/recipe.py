"""Everything that a run needs, as nested frozen dataclasses, and their way to YAML and back."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from torch import nn

from shared.data.dataset import Dataset
from shared.durable import write_whole
from shared.engine.optimizer import SGD, AdamW, Constant, CosineRestarts
from shared.engine.precision import Precision
from shared.engine.task import Task
from shared.refusal import Refusal


class ModelConfig(Protocol):
    """Settings that build the network, with random weights drawn from torch's global generator."""

    def build(self) -> nn.Module: ...


class DataConfig(Protocol):
    """Settings that build the data sets. ``fingerprint`` says what the data is, in JSON types.

    It holds at least ``description`` (a sentence) and ``synthetic`` (a bool), and goes into the manifest.
    """

    def train(self) -> Dataset: ...

    def validation(self) -> Dataset: ...

    def fingerprint(self) -> dict[str, Any]: ...


class TaskConfig(Protocol):
    """Settings that build the task."""

    def build(self) -> Task: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How long a run goes on, in which portions, and when it stops early.

    ``batch`` is the global batch, shared by all processes. ``steps`` and ``minutes`` end a run before its epochs do.
    Early stopping follows ``monitor``, a name in the scores of the validation (``loss`` is always there).
    """

    epochs: int = 10
    steps: int | None = None
    minutes: float | None = None
    batch: int = 32
    evaluation_batch: int | None = None
    clip_norm: float = 1.0
    monitor: str = "loss"
    mode: Literal["min", "max"] = "min"
    patience: int = 5
    min_delta: float = 0.001
    log_every: int = 10
    checkpoint_every: int = 200
    keep: int = 2
    loader_threads: int = 1

    def __post_init__(self) -> None:
        for name in (
            "epochs",
            "steps",
            "batch",
            "evaluation_batch",
            "patience",
            "log_every",
            "checkpoint_every",
            "keep",
        ):
            if (value := getattr(self, name)) is not None and value < 1:
                raise Refusal(f"limits.{name} is {value}; it must be at least 1")
        if self.loader_threads < 1 or self.clip_norm <= 0 or (self.minutes is not None and self.minutes <= 0):
            raise Refusal("limits.loader_threads, limits.clip_norm and limits.minutes must be above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A run, fully described. An app narrows the types of ``model``, ``data`` and ``task``."""

    model: ModelConfig
    data: DataConfig
    task: TaskConfig
    optimizer: AdamW | SGD = field(default_factory=AdamW)
    schedule: CosineRestarts | Constant = field(default_factory=CosineRestarts)
    precision: Precision = "auto"
    limits: Limits = field(default_factory=Limits)
    seed: int = 0


R = TypeVar("R", bound=Recipe)


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
        raise Refusal(f"{path} does not exist; a run's directory holds recipe.yaml once training has begun") from error
    if not isinstance(document, dict) or not {"app", "name", "recipe"} <= document.keys():
        raise Refusal(f"{path} is not a recipe file; expected the keys app, name, digest, recipe")
    return document


def from_mapping(kind: type[R], mapping: dict[str, Any]) -> R:
    """A recipe of class ``kind`` from JSON types, every value checked against its field's type."""
    try:
        return TypeAdapter(kind).validate_python(mapping)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise Refusal(f"the recipe does not fit {kind.__name__}: {faults}") from error
