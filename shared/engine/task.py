"""The seam between the engine and a domain: how a model learns and is scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, Self, TypeAlias, runtime_checkable

from torch import Tensor, nn

from shared.data.dataset import Batch


class WeightedLoss(NamedTuple):
    """A loss that is the mean over ``weight`` things in a batch: positive anchors, observed values.

    Their number differs from one part of the batch to another. Knowing it, the engine weighs the mean of each part so
    that what is trained on is the mean over the whole batch, on any number of processes. Where a process takes its
    samples in several micro-batches, the task must also know the number before the forward pass: see ``Counted``.
    """

    mean: Tensor
    weight: Tensor | float


Loss: TypeAlias = Tensor | WeightedLoss
"""The mean over a batch's samples, or over something else that is counted."""


@runtime_checkable
class Counted(Protocol):
    """A task whose weights follow from the batch alone.

    ``count`` gives, under the name of each ``WeightedLoss`` (``loss`` where ``Task.loss`` returns a single one), the
    weight that it will have. It is called before the forward passes of a step, where the recipe has a micro-batch;
    numbers may be tensors on the batch's device.
    """

    def count(self, batch: Batch) -> Mapping[str, Tensor | float]: ...


@runtime_checkable
class Prepared(Protocol):
    """A task that must see the model before the first step, such as one whose counts depend on the model's anchors.

    ``prepare`` is called once, with the model on its device and not wrapped.
    """

    def prepare(self, model: nn.Module) -> None: ...


class Scores(Protocol):
    """Collects what an evaluation sees. Every process fills its own; they are merged, then summed up once.

    ``merge`` must not depend on the order of the parts.
    """

    def merge(self, other: Self) -> None: ...

    def summary(self) -> dict[str, float]: ...


class Task(Protocol):
    """How a model learns and is scored. ``apps/<vertical>/task.py`` implements it over the domain library.

    ``loss`` returns the loss of a batch, or several by name, which are added; the names are the same for every
    batch. It is called in training mode, ``evaluate`` in evaluation mode without gradients. A task may also be
    ``Counted`` and ``Prepared``, and say ``leaves_parameters_unused = True`` where a step may leave parameters of the
    model out (a head that is only trained where its class occurs): finding them costs every step of several processes.
    """

    def loss(self, model: nn.Module, batch: Batch) -> Loss | dict[str, Loss]: ...

    def evaluate(self, model: nn.Module, batch: Batch, scores: Any) -> None: ...

    def scores(self) -> Scores: ...
