"""Settings of optimizers and learning-rate schedules, which build the component. They import torch only when used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters in two groups: matrices and kernels with weight decay, norms and biases without.

    Parameters with fewer than two dimensions count as norms and biases, as in the training of GPT-2 and ConvNeXt.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trainable if parameter.ndim >= 2]
    not_decayed = [parameter for parameter in trainable if parameter.ndim < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": not_decayed, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _can_fuse(model: nn.Module) -> bool:
    """Whether torch has a fused kernel for the step. A loop over the parameters takes several times as long.

    Fused kernels read a parameter and its gradient in the order of the memory. That is wrong for a slice, such as
    ``conv.weight[:, :1]``, and writes outside an expanded tensor: their gradients are contiguous.
    """
    return all(
        p.device.type in ("cpu", "cuda") and p.is_floating_point() and _fills_its_memory(p) for p in model.parameters()
    )


def _fills_its_memory(parameter: Tensor) -> bool:
    """Whether the elements fill a range of memory without gaps and overlaps, in any order of the axes."""
    import torch

    # ``empty_like`` keeps exactly such strides.
    return torch.empty_like(parameter, device="meta").stride() == parameter.stride()


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamW:
    """AdamW (Loshchilov and Hutter, 2019). Norms and biases are not decayed."""

    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)

    def build(self, model: nn.Module) -> Optimizer:
        import torch

        groups = parameter_groups(model, self.weight_decay)
        return torch.optim.AdamW(groups, lr=self.learning_rate, betas=self.betas, fused=_can_fuse(model))


@dataclass(frozen=True, kw_only=True, slots=True)
class SGD:
    """Stochastic gradient descent with momentum. Norms and biases are not decayed."""

    learning_rate: float = 1e-2
    momentum: float = 0.9
    weight_decay: float = 3e-5
    nesterov: bool = True

    def build(self, model: nn.Module) -> Optimizer:
        import torch

        from shared.comms.sharded_state import is_sharded

        groups = parameter_groups(model, self.weight_decay)
        # torch 2.14 has no fused SGD for tensors sharded over processes.
        fused = _can_fuse(model) and not any(map(is_sharded, model.parameters()))
        return torch.optim.SGD(
            groups, lr=self.learning_rate, momentum=self.momentum, nesterov=self.nesterov, fused=fused
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class CosineRestarts:
    """Linear warm-up, then cosine annealing with warm restarts (SGDR; Loshchilov and Hutter, 2017, eq. 5).

    ``period`` and ``multiplier`` are T_0 (in epochs) and T_mult of ``CosineAnnealingWarmRestarts``.
    """

    warmup_steps: int = 100
    period: float = 10.0
    multiplier: int = 2
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.warmup_steps < 0 or self.period <= 0 or self.multiplier < 1 or not 0 <= self.floor <= 1:
            raise InvalidInputError(
                "schedule: warmup_steps must be at least 0, period above 0, multiplier at least 1 and floor from 0 to 1"
            )

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate at step ``step``, counted from 0, as a fraction of the maximum."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        position = (step - self.warmup_steps) / steps_per_epoch
        period = self.period
        while position >= period:
            position -= period
            period *= self.multiplier
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * position / period))

    def build(self, optimizer: Optimizer, steps_per_epoch: int) -> LambdaLR:
        from torch.optim.lr_scheduler import LambdaLR

        return LambdaLR(optimizer, lambda step: self.factor(step, steps_per_epoch))


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant:
    """A constant learning rate after a linear warm-up."""

    warmup_steps: int = 0

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise InvalidInputError(f"schedule.warmup_steps is {self.warmup_steps}; it must be at least 0")

    def build(self, optimizer: Optimizer, steps_per_epoch: int) -> LambdaLR:
        from torch.optim.lr_scheduler import LambdaLR

        return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (self.warmup_steps + 1)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps:
    """Linear warm-up, then the learning rate is multiplied by ``factor`` at each of the ``milestones``, in epochs.

    These are ``gamma`` and ``milestones`` of ``MultiStepLR``.
    """

    warmup_steps: int = 0
    milestones: tuple[float, ...] = (8.0, 11.0)
    factor: float = 0.1

    def __post_init__(self) -> None:
        if self.warmup_steps < 0 or not 0 < self.factor <= 1 or any(at <= 0 for at in self.milestones):
            raise InvalidInputError(
                "schedule: warmup_steps must be at least 0, factor above 0 and at most 1, and milestones above 0"
            )

    def build(self, optimizer: Optimizer, steps_per_epoch: int) -> LambdaLR:
        from torch.optim.lr_scheduler import LambdaLR

        def learning_rate_factor(step: int) -> float:
            passed = sum(step >= round(at * steps_per_epoch) for at in self.milestones)
            return min(1.0, (step + 1) / (self.warmup_steps + 1)) * self.factor**passed

        return LambdaLR(optimizer, learning_rate_factor)


OPTIMIZERS: Mapping[str, type[AdamW | SGD]] = {"adamw": AdamW, "sgd": SGD}
SCHEDULES: Mapping[str, type[CosineRestarts | Constant | Steps]] = {
    "cosine": CosineRestarts,
    "constant": Constant,
    "steps": Steps,
}
"""The classes by their name on the command line of ``trivium train``."""
