"""The interface between the engine and an application: how a model is trained and scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, Self, TypeAlias, runtime_checkable

from torch import Tensor, nn

from shared.data.dataset import Batch


class WeightedLoss(NamedTuple):
    """A loss averaged over ``weight`` elements of a batch, such as positive anchors or observed values.

    The number of elements varies between micro-batches and processes. The engine uses it to weight the means, so that
    the model is trained on the mean over the global batch, for any number of processes. With a weight of 0 the mean
    counts as 0, even if it is not a number, such as torch's mean over no elements. A masked sum must be divided by at
    least 1, because the gradient of 0 / 0 is not a number either. If a process splits its samples into several
    micro-batches, the task must also know the number before the forward pass: see ``Counted``.
    """

    mean: Tensor
    weight: Tensor | float


Loss: TypeAlias = Tensor | WeightedLoss
"""A tensor is the mean over the samples of a batch; a ``WeightedLoss`` is the mean over other elements."""


@runtime_checkable
class Counted(Protocol):
    """A task that can compute the weights of its losses from the batch alone.

    ``count`` returns the weight of each ``WeightedLoss`` by name (``loss`` if ``Task.loss`` returns a single one).
    It is called before the forward passes of a step if the recipe sets a micro-batch. The weights may be tensors on
    the device of the batch.
    """

    def count(self, batch: Batch) -> Mapping[str, Tensor | float]: ...


@runtime_checkable
class Prepared(Protocol):
    """A task that needs the model before the first step, for example because its counts depend on the anchors.

    ``prepare`` is called once, with the unwrapped model on its device.
    """

    def prepare(self, model: nn.Module) -> None: ...


class Scores(Protocol):
    """Accumulates the results of an evaluation. Each process fills its own instance; the engine merges them.

    ``merge`` must not depend on the order of merging. ``summary`` returns the scores by name, each a number or a tensor
    with one element, and is called once, after the merge.
    """

    def merge(self, other: Self) -> None: ...

    def summary(self) -> dict[str, float]: ...


class Task(Protocol):
    """How a model is trained and scored. ``apps/<vertical>/task.py`` implements it with the domain library.

    ``loss`` returns the loss of a batch, or several losses by name, which are added; the names are the same for every
    batch. It is called in training mode, ``evaluate`` in evaluation mode without gradients. A task may also implement
    ``Counted`` and ``Prepared``. It sets ``leaves_parameters_unused = True`` if a step may not use all parameters of
    the model, such as a head that is trained only when its class occurs: on several processes the search for unused
    parameters slows down every step.
    """

    def loss(self, model: nn.Module, batch: Batch) -> Loss | dict[str, Loss]: ...

    def evaluate(self, model: nn.Module, batch: Batch, scores: Any) -> None: ...

    def scores(self) -> Scores: ...
