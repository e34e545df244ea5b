"""How a model is spread over the processes of a run: what a recipe says of it. Torch is imported on use."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from shared.comms.group import Group


@runtime_checkable
class Strategy(Protocol):
    """A model spread over the processes of a run.

    ``wrap`` is called once, before the optimizer is built, and returns what the task calls; the model itself may be
    changed in place (as FSDP2 does), and keeps its parameters' names. ``clip`` scales the gradients to a norm of at
    most ``norm`` over all processes and returns the norm before that. Within ``accumulating`` a backward pass adds to
    the gradients without exchanging them: all micro-batches of a step but the last run there.
    """

    def wrap(self, model: nn.Module) -> nn.Module: ...

    def clip(self, model: nn.Module, norm: float) -> Tensor: ...

    def accumulating(self) -> AbstractContextManager[None]: ...


@runtime_checkable
class StrategyConfig(Protocol):
    """Settings that build the strategy for a group of processes."""

    def build(self, group: Group) -> Strategy: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Auto:
    """The model as it is on one process, and ``DDP`` on several."""

    def build(self, group: Group) -> Strategy:
        return DDP().build(group)


@dataclass(frozen=True, kw_only=True, slots=True)
class DDP:
    """torch's DistributedDataParallel: the whole model on every process, gradients averaged.

    ``find_unused_parameters`` is needed where a step may leave parameters out (a batch without objects).
    """

    find_unused_parameters: bool = True

    def build(self, group: Group) -> Strategy:
        return SingleStrategy() if group.world == 1 else DDPStrategy(group, self)


class SingleStrategy:
    """The model as it is."""

    def __init__(self) -> None:
        self._parameters: list[nn.Parameter] = []

    def wrap(self, model: nn.Module) -> nn.Module:
        self._parameters = list(model.parameters())
        return model

    def clip(self, model: nn.Module, norm: float) -> Tensor:
        from torch.nn.utils import clip_grad_norm_

        # Going through a model for its parameters takes longer than their norm.
        return clip_grad_norm_(self._parameters, norm)

    def accumulating(self) -> AbstractContextManager[None]:
        return nullcontext()


class DDPStrategy(SingleStrategy):
    """Every process has all gradients after the backward pass, so each clips by itself."""

    def __init__(self, group: Group, settings: DDP) -> None:
        super().__init__()
        self._group, self._settings = group, settings
        self._wrapped: nn.Module | None = None

    def wrap(self, model: nn.Module) -> nn.Module:
        from torch.nn.parallel import DistributedDataParallel

        devices = [self._group.device.index] if self._group.device.type == "cuda" else None
        self._wrapped = DistributedDataParallel(
            super().wrap(model), device_ids=devices, find_unused_parameters=self._settings.find_unused_parameters
        )
        return self._wrapped

    def accumulating(self) -> AbstractContextManager[None]:
        from torch.nn.parallel import DistributedDataParallel

        assert isinstance(self._wrapped, DistributedDataParallel)
        return self._wrapped.no_sync()
