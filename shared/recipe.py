"""Everything that a run needs, as nested frozen dataclasses. On the ground floor: importing it imports no torch.

A named recipe is a plain function that returns one. A setting builds its own component (``recipe.model.build``).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

from shared.errors import InvalidInputError
from shared.optimizers import AdamW, CosineRestarts
from shared.precision import Precision
from shared.strategy import Auto, StrategyConfig

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from shared.data.dataset import Dataset
    from shared.engine.task import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class InputSpec:
    """What model, data and inference must agree on, stated once; an application's own subclass has the fields."""


@runtime_checkable
class ModelConfig(Protocol):
    """Settings that build the network for inputs as ``input`` says, with weights from torch's global generator."""

    def build(self, input: Any) -> nn.Module: ...


class Axis(NamedTuple):
    """One axis of a tensor, and what stands at each of its places; a place of a class has the class's name in it."""

    number: int
    places: Sequence[Hashable]


ClassAxes: TypeAlias = Mapping[str, Axis]
"""The axes along which a network keeps its classes, by the tensor's name."""


@runtime_checkable
class Classed(Protocol):
    """A model's config that says where its network keeps what it learns of each class, so that it is carried over."""

    def class_axes(self, classes: Sequence[str]) -> ClassAxes: ...


@runtime_checkable
class DataConfig(Protocol):
    """Settings that build the data sets. ``fingerprint`` says what the data is, in JSON types.

    It holds at least ``description`` (a sentence) and ``synthetic`` (a bool), and goes into the manifest. Optional:

    ``fit_input(input) -> input``   what model and inference must know of this data (its classes, its column of values)
    ``facts(input) -> mapping``     what is printed before training: counts, ranges, classes, doubtful splits
    ``order(seed, batch) -> Order`` another order of samples than a permutation
    """

    def train(self, input: Any) -> Dataset: ...

    def validation(self, input: Any) -> Dataset: ...

    def fingerprint(self) -> dict[str, Any]: ...


@runtime_checkable
class TaskConfig(Protocol):
    """Settings that build the task."""

    def build(self) -> Task: ...


@runtime_checkable
class OptimizerConfig(Protocol):
    """Settings that build the optimizer of a model, whose parameters can be grouped by name."""

    def build(self, model: nn.Module) -> Optimizer: ...


@runtime_checkable
class ScheduleConfig(Protocol):
    """Settings that build the learning-rate schedule, stepped once an optimizer step."""

    def build(self, optimizer: Optimizer, steps_per_epoch: int) -> LRScheduler: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How long a run goes on, in which portions, and when it stops early.

    ``batch`` is the global batch, shared by all processes. ``micro_batch`` is the most samples that a process takes
    through the model at once: of a larger share of the batch the gradients are accumulated. ``steps``, where
    given, is the length of a run in place of ``epochs``; ``minutes`` ends it earlier.
    A run is validated every ``validate_every`` steps, by default at the end of each epoch, and where it ends. Early
    stopping follows ``monitor``, a name in the scores of the validation (``loss`` is always there).
    """

    epochs: int = 10
    steps: int | None = None
    minutes: float | None = None
    batch: int = 32
    micro_batch: int | None = None
    evaluation_batch: int | None = None
    clip_norm: float = 1.0
    validate_every: int | None = None
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
            "micro_batch",
            "evaluation_batch",
            "validate_every",
            "patience",
            "log_every",
            "checkpoint_every",
            "keep",
        ):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InvalidInputError(f"limits.{name} is {value}; it must be at least 1")
        if self.loader_threads < 1 or self.clip_norm <= 0 or (self.minutes is not None and self.minutes <= 0):
            raise InvalidInputError("limits.loader_threads, limits.clip_norm and limits.minutes must be above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A run, fully described. An app narrows the types of ``model``, ``data``, ``task`` and ``input``.

    ``init`` is where the weights start from: an artifact, a run, or a file of weights; by default they are random.
    ``ema_decay``, where given (0.999, 0.9999), keeps an exponential moving average of the weights: it is validated and
    exported in place of the last ones. ``compile`` has the forward pass compiled by ``torch.compile``.
    """

    model: ModelConfig
    data: DataConfig
    task: TaskConfig
    input: InputSpec = field(default_factory=InputSpec)
    optimizer: OptimizerConfig = field(default_factory=AdamW)
    schedule: ScheduleConfig = field(default_factory=CosineRestarts)
    precision: Precision = "auto"
    strategy: StrategyConfig = field(default_factory=Auto)
    ema_decay: float | None = None
    compile: bool = False
    init: Path | None = None
    limits: Limits = field(default_factory=Limits)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise InvalidInputError(f"ema_decay is {self.ema_decay}; it must be above 0 and below 1")
        for name in ("model", "data", "task", "optimizer", "schedule"):
            part, method = getattr(self, name), "train" if name == "data" else "build"
            if isinstance(part, type) or not is_dataclass(part) or not hasattr(part, method):
                kind = f"the class {part.__name__}" if isinstance(part, type) else f"a {type(part).__name__}"
                raise InvalidInputError(
                    f"the recipe's {name} is {kind}; it must be an instance of a dataclass with {method}(...), whose "
                    "fields are the settings that the run records"
                )


RecipeT = TypeVar("RecipeT", bound=Recipe)


def resolve(recipe: RecipeT) -> RecipeT:
    """The recipe with its input fitted to its data, where the data's config has ``fit_input``."""
    fit_input = getattr(recipe.data, "fit_input", None)
    return recipe if fit_input is None else replace(recipe, input=fit_input(recipe.input))
