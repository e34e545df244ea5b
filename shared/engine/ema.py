"""An exponential moving average of a model's weights, on which a run is validated and which it exports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from shared.comms.group import Group
from shared.comms.sharded_state import local_tensor


class ExponentialMovingAverage:
    """The average of the parameters of ``model`` and of the statistics of its batch normalisation, by their names.

    After each step of the optimizer ``average = decay * average + (1 - decay) * weights``. ``decay`` warms up as
    TensorFlow's ``ExponentialMovingAverage`` has it, ``min(decay, (1 + n) / (10 + n))`` at update number n from 0, so
    that a short run is not an average with its random start. Other buffers are the model's own.

    The average is kept where the parameters are and as they are spread; it is made after the strategy has wrapped the
    model.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self._names: dict[str, int] = {}
        self._live: list[Tensor] = []
        numbers: dict[int, int] = {}
        for name, tensor in _averaged(model):
            if (number := numbers.setdefault(id(tensor), len(self._live))) == len(self._live):
                self._live.append(tensor)
            self._names[name] = number
        self._average = [tensor.detach().clone() for tensor in self._live]

    @torch.no_grad()
    def update(self) -> None:
        """Takes the weights as they are now into the average."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        average, live = ([local_tensor(tensor) for tensor in each] for each in (self._average, self._live))
        torch._foreach_lerp_(average, live, 1 - decay)
        self.updates += 1

    @contextmanager
    def applied(self, group: Group) -> Iterator[None]:
        """Within it the model has the averaged weights, on every process alike, and afterwards its own again."""
        # The statistics of batch normalisation are each process's own; the leader's are those that a checkpoint keeps.
        pairs = zip(self._live, self._average, strict=True)
        group.copy_from_leader(average for live, average in pairs if not isinstance(live, nn.Parameter))
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for live, average in zip(self._live, self._average, strict=True):
            own = live.detach().clone()
            live.copy_(average)
            average.copy_(own)

    def state_dict(self) -> dict[str, Any]:
        """``updates``, and ``average``, the tensors by the names that the model's state dict has for them."""
        return {"updates": self.updates, "average": {name: self._average[at] for name, at in self._names.items()}}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the average in place."""
        self.updates = state_dict["updates"]
        for name, at in self._names.items():
            self._average[at].copy_(state_dict["average"][name])


def _averaged(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors of floating point by name; one that the model has twice comes under both names."""
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.is_floating_point():
            yield name, parameter
    for prefix, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _NormBase):
            for name in ("running_mean", "running_var"):
                if isinstance(buffer := getattr(module, name), Tensor):
                    yield f"{prefix}.{name}" if prefix else name, buffer
