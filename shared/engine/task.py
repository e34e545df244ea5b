"""The seam between the engine and a domain: how a model learns and is scored."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, Self, TypeAlias

from torch import Tensor, nn

from shared.data.dataset import Batch


class WeightedLoss(NamedTuple):
    """A loss that is the mean over ``weight`` things in a batch: positive anchors, observed values.

    Their number differs from one process's share of the batch to another's. Told it, the engine weighs each
    process's mean so that what is trained on is the mean over the whole batch, on any number of processes.
    """

    mean: Tensor
    weight: Tensor | float


Loss: TypeAlias = Tensor | WeightedLoss
"""The mean over a batch's samples, or over something else that is counted."""


class Scores(Protocol):
    """Collects what an evaluation sees. Every process fills its own; they are merged, then summed up once.

    ``merge`` must not depend on the order of the parts.
    """

    def merge(self, other: Self) -> None: ...

    def summary(self) -> dict[str, float]: ...


class Task(Protocol):
    """How a model learns and is scored. ``apps/<vertical>/task.py`` implements it over the domain library.

    ``loss`` returns the loss of a batch, or several by name, which are added; the names are the same for every
    batch. It is called in training mode, ``evaluate`` in evaluation mode without gradients.
    """

    def loss(self, model: nn.Module, batch: Batch) -> Loss | dict[str, Loss]: ...

    def evaluate(self, model: nn.Module, batch: Batch, scores: Any) -> None: ...

    def scores(self) -> Scores: ...
