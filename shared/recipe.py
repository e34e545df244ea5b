"""Everything that a run needs, as nested frozen dataclasses. Importing this module does not import torch.

A named recipe is a plain function that returns a ``Recipe``. Each config builds its own component
(``recipe.model.build``).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

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
    """The settings that model, data and inference must agree on. Each application has a subclass with its fields."""


@runtime_checkable
class ModelConfig(Protocol):
    """Settings that build the network for inputs described by ``input``; torch's global generator draws the weights."""

    def build(self, input: Any) -> nn.Module: ...


class Axis(NamedTuple):
    """One axis of a tensor, and a key for each index along it. The key of a class contains the class name."""

    number: int
    places: Sequence[Hashable]


ClassAxes: TypeAlias = Mapping[str, Axis]
"""The axes along which a network has its classes, by the name of the tensor."""


@runtime_checkable
class HasClassAxes(Protocol):
    """A model config that names the tensor axes of the classes, so that fine-tuning can carry their weights over."""

    def class_axes(self, classes: Sequence[str]) -> ClassAxes: ...


@runtime_checkable
class DataConfig(Protocol):
    """Settings that build the data sets. ``fingerprint`` describes the data in JSON types.

    It has at least ``description`` (a sentence) and ``synthetic`` (a bool), and goes into the manifest. Optional are:

    ``fit_input(input) -> input``   the input with what model and inference must know about this data (its classes, its
                                    value column)
    ``facts(input) -> mapping``     facts to print before training: counts, ranges, classes, questionable splits
    ``order(seed, batch) -> Order`` an order of the samples other than a permutation
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
    """Settings that build the optimizer of a model. They get the model so that parameters can be grouped by name."""

    def build(self, model: nn.Module) -> Optimizer: ...


@runtime_checkable
class ScheduleConfig(Protocol):
    """Settings that build the learning-rate schedule, which is stepped once per optimizer step."""

    def build(self, optimizer: Optimizer, steps_per_epoch: int) -> LRScheduler: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The length of a run, its batch sizes, and when it validates, saves and stops early.

    ``batch`` is the global batch size over all processes. ``micro_batch`` is the maximum number of samples that a
    process passes through the model at once; if its share of the batch is larger, it accumulates gradients. ``steps``,
    if given, sets the length of a run in place of ``epochs``; ``minutes`` can end it earlier.
    A run is validated every ``validate_every`` steps, by default at the end of each epoch, and when it ends. Early
    stopping follows ``monitor``, the name of a validation score (``loss`` always exists).
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
    """All settings of a run. An app narrows the types of ``model``, ``data``, ``task`` and ``input``.

    ``init`` is the source of the initial weights: an artifact, a run, or a file of weights; by default they are random.
    ``ema_decay``, if given (0.999, 0.9999), keeps an exponential moving average of the weights, which is validated and
    exported in place of the last weights. ``compile`` compiles the forward pass with ``torch.compile``. The class
    attribute ``data_sets``, if given, has the data sets that the recipe can train on, by name, in place of the app's.
    """

    data_sets: ClassVar[Mapping[str, type[DataConfig]] | None] = None

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

    def check_data(self) -> None:
        """Raises ``InvalidInputError`` if the recipe's task cannot be trained on ``data``.

        ``resolve`` calls it before a training reads its data. An app that has data sets of several kinds overrides it.
        """


RecipeT = TypeVar("RecipeT", bound=Recipe)


def resolve(recipe: RecipeT) -> RecipeT:
    """The recipe with its input fitted to its data, if the data config has ``fit_input``; else the same recipe.

    Raises what ``Recipe.check_data`` raises.
    """
    recipe.check_data()
    fit_input = getattr(recipe.data, "fit_input", None)
    return recipe if fit_input is None else replace(recipe, input=fit_input(recipe.input))
