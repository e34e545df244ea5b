"""Losses and gradients that are no numbers: noticed in the step in which they come up, before the optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Optimizer

if TYPE_CHECKING:
    from shared.engine.setup import Training


class DivergenceError(FloatingPointError):
    """A loss or a gradient was not finite. The message says at which step, of which samples, and in which term."""


class FiniteGuard:
    """Keeps the first step whose loss or gradient was not finite, and what they were.

    On a GPU all of it stays there, and only ``fault`` waits for the device: it is for logging steps. On a CPU reading a
    value costs nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_host = device.type == "cpu"
        self._names: tuple[str, ...] = ()
        self._first = torch.full((), -1, dtype=torch.int64, device=device)
        self._values: Tensor | None = None
        self._fault: tuple[int, list[float]] | None = None

    @property
    def sound(self) -> bool:
        """Whether nothing is known on the host to have gone wrong."""
        return self._fault is None

    def step(self, optimizer: Optimizer, number: int, norm: Tensor, terms: Mapping[str, Tensor]) -> None:
        """Steps the optimizer, unless the norm of the gradients or a term of the loss is not finite."""
        finite = self.note(number, norm, terms)
        if isinstance(finite, Tensor) and getattr(optimizer, "_step_supports_amp_scaling", False):
            # Fused optimizers read the flag in their kernel, as they do for torch.amp's scaler: nothing waits.
            optimizer.grad_scale, optimizer.found_inf = None, (~finite).float()  # type: ignore[attr-defined]
            optimizer.step()
        elif finite:
            optimizer.step()

    def note(self, number: int, norm: Tensor, terms: Mapping[str, Tensor], *, judge_norm: bool = True) -> bool | Tensor:
        """Whether the terms, and the norm unless it is not to be judged, are finite; on a GPU a tensor there."""
        self._names = tuple(terms)
        if self._on_host:
            values = [*(term.item() for term in terms.values()), norm.item()]
            finite = all(map(math.isfinite, values if judge_norm else values[:-1]))
            if not finite and self._fault is None:
                self._fault = (number, values)
            return finite
        stacked = torch.stack([*(term.float() for term in terms.values()), norm.float()])
        on_device = torch.isfinite(stacked if judge_norm else stacked[:-1]).all()
        first = ~on_device & (self._first < 0)
        self._values = stacked if self._values is None else torch.where(first, stacked, self._values)
        self._first = torch.where(first, number, self._first)
        return on_device

    def fault(self) -> tuple[int, str] | None:
        """The number of the first step that was not finite and its values in words, where there is one."""
        if not self._on_host and self._values is not None and (number := int(self._first.item())) >= 0:
            self._fault = (number, self._values.tolist())
        if self._fault is None:
            return None
        number, (*terms, norm) = self._fault
        words = f"the loss is {sum(terms)}"
        if len(terms) > 1:
            words += f" ({', '.join(f'{n} {v:.6g}' for n, v in zip(self._names, terms, strict=True))})"
        return number, f"{words} and the norm of the gradients {norm}"


def refuse_divergence(training: Training) -> None:
    """Raises ``DivergenceError`` on every process where a loss or a gradient of one was not finite."""
    fault = training.guard.fault()
    if not training.group.any(fault is not None):
        return
    message = None
    if fault is not None:
        number, words = fault
        parts = [part.tolist() for part in training.loader.indices(number)]
        samples = ", ".join(map(str, parts[0])) if len(parts) == 1 else " and ".join(map(str, parts))
        message = f"at step {number + 1} {words}, of the samples {samples}"
    told = next(message for message in training.group.gather(message) if message is not None)
    raise DivergenceError(f"{told}; lower the learning rate, train in fp32, or look at these samples")
