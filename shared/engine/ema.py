"""An exponential moving average of a model's weights, used for validation and export."""

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
    """The moving average of the parameters of ``model`` and of its batch normalisation statistics, by name.

    After each optimizer step ``average = decay * average + (1 - decay) * weights``. ``decay`` warms up as in
    TensorFlow's ``ExponentialMovingAverage``, ``min(decay, (1 + n) / (10 + n))`` at update number n from 0, so that the
    random initial weights do not dominate the average of a short run. Other buffers are not averaged.

    The average has the device and the sharding of the parameters. Create it after the strategy has wrapped the model.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self._names: dict[str, int] = {}
        self._live: list[Tensor] = []
        numbers: dict[int, int] = {}
        for name, tensor in _tensors_to_average(model):
            if (number := numbers.setdefault(id(tensor), len(self._live))) == len(self._live):
                self._live.append(tensor)
            self._names[name] = number
        self._average = [tensor.detach().clone() for tensor in self._live]

    @torch.no_grad()
    def update(self) -> None:
        """Updates the average with the current weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        average, live = ([local_tensor(tensor) for tensor in each] for each in (self._average, self._live))
        torch._foreach_lerp_(average, live, 1 - decay)
        self.updates += 1

    @contextmanager
    def applied(self, group: Group) -> Iterator[None]:
        """Within the context the model has the averaged weights, the same on every process; then its own again."""
        # Batch normalisation statistics differ between processes; a checkpoint saves the leader's.
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
        """``updates``, and ``average`` with the averaged tensors by their names in the model's state dict."""
        return {"updates": self.updates, "average": {name: self._average[at] for name, at in self._names.items()}}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the average in place."""
        self.updates = state_dict["updates"]
        for name, at in self._names.items():
            self._average[at].copy_(state_dict["average"][name])


def _tensors_to_average(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The floating-point tensors to average, by name; a tensor that the model uses twice appears under both names."""
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.is_floating_point():
            yield name, parameter
    for prefix, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _NormBase):
            for name in ("running_mean", "running_var"):
                if isinstance(buffer := getattr(module, name), Tensor):
                    yield f"{prefix}.{name}" if prefix else name, buffer
