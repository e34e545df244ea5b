"""Combines the losses of micro-batches on several processes into the loss of the global batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from shared.comms.group import Group
from shared.data.dataset import Batch
from shared.data.loader import Part
from shared.engine.task import Loss, WeightedLoss
from shared.errors import InvalidInputError

Factors = Mapping[str, Tensor]
"""The factor by which the mean of a micro-batch is multiplied, by the name of the loss."""


def count_factors(
    count: Callable[[Batch], Mapping[str, Tensor | float]], parts: Sequence[Part], group: Group
) -> list[Factors]:
    """The factors of each micro-batch: its count over that of the global batch, times the number of processes.

    They are known before the forward passes. Over all micro-batches of all processes they sum to the number of
    processes, because gradients are averaged over processes.
    """
    counts = [count(part.batch) for part in parts]
    names = sorted(counts[0])
    if not names:
        return [{} for _ in parts]
    own = torch.stack(
        [
            torch.stack([torch.as_tensor(part_count[name], dtype=torch.float64, device=group.device) for name in names])
            for part_count in counts
        ]
    )
    # If the count of the global batch is zero, all means are zero.
    factors = own * group.world / group.sum(own.sum(dim=0)).clamp(min=1e-12)
    return [dict(zip(names, row, strict=True)) for row in factors.unbind()]


def weighted_terms(
    found: Loss | Mapping[str, Loss], weight: float, group: Group, factors: Factors | None = None, *, parts: int = 1
) -> dict[str, Tensor]:
    """The losses of a micro-batch by name, scaled so that their sum over micro-batches, averaged over processes, is the
    loss of the global batch.

    ``weight`` is the micro-batch's fraction of the global batch; it scales a mean over samples. A ``WeightedLoss`` is
    scaled by its fraction of the total weight: by ``factors`` if the task counts, else by a collective call after the
    forward pass. The latter is impossible if the batch has several micro-batches (``parts``): ``InvalidInputError``.
    """
    losses = found if isinstance(found, Mapping) else {"loss": found}
    _refuse_unusable(losses)
    known = factors or {}
    uncounted = {name: loss for name, loss in losses.items() if isinstance(loss, WeightedLoss) and name not in known}
    if uncounted and parts > 1:
        raise InvalidInputError(
            f"the loss {next(iter(uncounted))} is a WeightedLoss that the task does not count before the forward pass, "
            "so a batch cannot be split into micro-batches: give the task a method count(batch), or use a smaller "
            "limits.batch without limits.micro_batch"
        )
    if uncounted and group.world > 1:
        known = {**known, **_gather_factors(uncounted, group)}
    terms = {}
    for name, loss in losses.items():
        mean = _mean_of_elements(loss) if isinstance(loss, WeightedLoss) else loss if loss.ndim == 0 else loss.mean()
        if name in known:
            terms[name] = mean * known[name].to(mean.dtype)
        elif isinstance(loss, WeightedLoss) or weight * group.world == 1:
            terms[name] = mean
        else:
            terms[name] = mean * (weight * group.world)
    return terms


def _refuse_unusable(losses: Mapping[str, Any]) -> None:
    """Raises ``InvalidInputError`` for what cannot be trained on, with the name of the loss."""
    for name, loss in losses.items():
        value = loss.mean if isinstance(loss, WeightedLoss) else loss
        # Beside other losses ``torch.tensor(0)`` is a constant, such as for a batch without objects.
        is_constant = isinstance(loss, Tensor) and loss.ndim == 0 and not loss.is_complex() and len(losses) > 1
        if not isinstance(value, Tensor) or not (value.is_floating_point() or is_constant):
            kind = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"of type {type(value).__name__}"
            raise InvalidInputError(
                f"the loss {name} is {kind}; Task.loss returns a floating-point tensor, a WeightedLoss with one, or a "
                "mapping of names to them"
            )
        if isinstance(loss, WeightedLoss) and (value.numel(), torch.as_tensor(loss.weight).numel()) != (1, 1):
            raise InvalidInputError(
                f"the WeightedLoss {name} has a mean of shape {tuple(value.shape)} and a weight of shape "
                f"{tuple(torch.as_tensor(loss.weight).shape)}; each must be a single number"
            )
    if torch.is_grad_enabled() and not any(
        (loss.mean if isinstance(loss, WeightedLoss) else loss).requires_grad for loss in losses.values()
    ):
        raise InvalidInputError(
            f"the loss ({', '.join(losses) or 'an empty mapping'}) depends on no parameter of the network that is "
            "trained; compute it from the outputs of the model, without detach, item and no_grad"
        )


def _mean_of_elements(loss: WeightedLoss) -> Tensor:
    """The mean, or 0 if the weight is 0: torch's mean over no elements is not a number."""
    mean = loss.mean.reshape(())
    return torch.where(torch.as_tensor(loss.weight, device=mean.device).reshape(()) > 0, mean, 0.0)


def _gather_factors(losses: Mapping[str, WeightedLoss], group: Group) -> Factors:
    own = torch.stack(
        [torch.as_tensor(loss.weight, dtype=torch.float64, device=group.device).reshape(()) for loss in losses.values()]
    )
    factors = own * group.world / group.sum(own).clamp(min=1e-12)
    return dict(zip(losses, factors.unbind(), strict=True))


def combine(losses: Loss | Mapping[str, Loss], weight: float, group: Group) -> Tensor:
    """The sum of the losses of a micro-batch, weighted as in ``weighted_terms``."""
    return total(weighted_terms(losses, weight, group))


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """The sum of the terms."""
    values = list(terms.values())
    return values[0] if len(values) == 1 else torch.stack(values).sum()
