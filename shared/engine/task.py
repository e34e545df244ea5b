"""The seam between the engine and a domain: how a model learns and is scored."""

from __future__ import annotations

from typing import Any, Protocol, Self

from torch import Tensor, nn

from shared.data.dataset import Batch


class Scores(Protocol):
    """Collects what an evaluation sees. Every process fills its own; they are merged, then summed up once.

    ``merge`` must not depend on the order of the parts.
    """

    def merge(self, other: Self) -> None: ...

    def summary(self) -> dict[str, float]: ...


class Task(Protocol):
    """How a model learns and is scored. ``apps/<vertical>/task.py`` implements it over the domain library.

    ``loss`` returns the loss of a batch as the mean over its samples, or several named losses, which are added;
    it is called in training mode, ``evaluate`` in evaluation mode without gradients.
    """

    def loss(self, model: nn.Module, batch: Batch) -> Tensor | dict[str, Tensor]: ...

    def evaluate(self, model: nn.Module, batch: Batch, scores: Any) -> None: ...

    def scores(self) -> Scores: ...
