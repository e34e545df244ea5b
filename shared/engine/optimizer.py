"""Optimizers and learning-rate schedules: settings that build their own component."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamW:
    """AdamW (Loshchilov and Hutter, 2019)."""

    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)

    def build(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        return torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay, betas=self.betas)


@dataclass(frozen=True, kw_only=True, slots=True)
class SGD:
    """Stochastic gradient descent with momentum."""

    learning_rate: float = 1e-2
    momentum: float = 0.9
    weight_decay: float = 3e-5
    nesterov: bool = True

    def build(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        return torch.optim.SGD(
            parameters,
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
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

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of step number ``step`` as a fraction of the highest."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        position = (step - self.warmup_steps) / steps_per_epoch
        period = self.period
        while position >= period:
            position -= period
            period *= self.multiplier
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * position / period))

    def build(self, optimizer: Optimizer, steps_per_epoch: int) -> LambdaLR:
        return LambdaLR(optimizer, lambda step: self.factor(step, steps_per_epoch))


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant:
    """A constant learning rate after a linear warm-up."""

    warmup: int = 0

    def build(self, optimizer: Optimizer, steps_per_epoch: int) -> LambdaLR:
        return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (self.warmup + 1)))
