"""Detects losses and gradients that are not finite in the step in which they occur, before the optimizer steps."""

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
    """A loss or a gradient is not finite. The message names the step, the samples and the term of the loss."""


class FiniteGuard:
    """Records the first step whose loss or gradient norm was not finite, with their values.

    On a GPU the record stays on the device, and only ``first_fault`` waits for it, on logging steps. On a CPU reading a
    value costs nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_host = device.type == "cpu"
        self._names: tuple[str, ...] = ()
        self._first_step = torch.full((), -1, dtype=torch.int64, device=device)
        self._values: Tensor | None = None
        self._fault: tuple[int, list[float]] | None = None

    @property
    def all_finite(self) -> bool:
        """Whether the host has seen only finite values."""
        return self._fault is None

    def step(self, optimizer: Optimizer, number: int, norm: Tensor, terms: Mapping[str, Tensor]) -> None:
        """Steps the optimizer unless the gradient norm or a term of the loss is not finite."""
        finite = self.record(number, norm, terms)
        if isinstance(finite, Tensor) and getattr(optimizer, "_step_supports_amp_scaling", False):
            # Fused optimizers read this flag in their kernel, as with torch.amp's scaler, so the host does not wait.
            optimizer.grad_scale, optimizer.found_inf = None, (~finite).float()  # type: ignore[attr-defined]
            optimizer.step()
        elif finite:
            optimizer.step()

    def record(
        self, number: int, norm: Tensor, terms: Mapping[str, Tensor], *, check_norm: bool = True
    ) -> bool | Tensor:
        """Records the values of a step. Returns whether the terms, and with ``check_norm`` the norm, are finite.

        On a GPU the result is a boolean tensor on the device.
        """
        self._names = tuple(terms)
        if self._on_host:
            values = [*(term.item() for term in terms.values()), norm.item()]
            finite = all(map(math.isfinite, values if check_norm else values[:-1]))
            if not finite and self._fault is None:
                self._fault = (number, values)
            return finite
        stacked = torch.stack([*(term.float() for term in terms.values()), norm.float()])
        on_device = torch.isfinite(stacked if check_norm else stacked[:-1]).all()
        first = ~on_device & (self._first_step < 0)
        self._values = stacked if self._values is None else torch.where(first, stacked, self._values)
        self._first_step = torch.where(first, number, self._first_step)
        return on_device

    def first_fault(self) -> tuple[int, str] | None:
        """The number of the first step that was not finite and a description of its values; None if there is none."""
        if not self._on_host and self._values is not None and (number := int(self._first_step.item())) >= 0:
            self._fault = (number, self._values.tolist())
        if self._fault is None:
            return None
        number, (*terms, norm) = self._fault
        description = f"the loss is {sum(terms)}"
        if len(terms) > 1:
            description += f" ({', '.join(f'{n} {v:.6g}' for n, v in zip(self._names, terms, strict=True))})"
        return number, f"{description} and the gradient norm {norm}"


def refuse_divergence(training: Training) -> None:
    """Raises ``DivergenceError`` on every process if a loss or a gradient was not finite on any of them."""
    fault = training.guard.first_fault()
    if not training.group.any(fault is not None):
        return
    message = None
    if fault is not None:
        number, description = fault
        parts = [part.tolist() for part in training.loader.indices(number)]
        samples = ", ".join(map(str, parts[0])) if len(parts) == 1 else " and ".join(map(str, parts))
        message = f"at step {number + 1} {description}, for the samples {samples}"
    first_message = next(message for message in training.group.gather(message) if message is not None)
    raise DivergenceError(f"{first_message}; lower the learning rate, train in fp32, or inspect these samples")
