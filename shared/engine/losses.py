"""One number to descend, from the losses of a batch that several processes share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from shared.comms.group import Group
from shared.engine.task import Loss, WeightedLoss


def combine(found: Loss | Mapping[str, Loss], share: float, group: Group) -> Tensor:
    """The sum of the losses, scaled so that its mean over the processes is the loss of the whole batch.

    ``share`` is this process's share of the batch's samples times the number of processes; a ``WeightedLoss`` is
    scaled by its share of the weight instead, which takes a collective call where there are several processes.
    """
    losses = found if isinstance(found, Mapping) else {"loss": found}
    counted = {name: loss for name, loss in losses.items() if isinstance(loss, WeightedLoss)}
    shares: dict[str, Tensor | float] = {}
    if counted and group.world > 1:
        numbers = torch.stack(
            [torch.as_tensor(loss.weight, dtype=torch.float64, device=group.device) for loss in counted.values()]
        )
        everybody = group.total(numbers)
        # Nobody has one: the means are nought everywhere.
        shares = dict(zip(counted, numbers * group.world / everybody.clamp(min=1e-12), strict=True))
    parts = []
    for name, loss in losses.items():
        if isinstance(loss, WeightedLoss):
            weight = shares.get(name, 1.0)
            parts.append(loss.mean * (weight.to(loss.mean.dtype) if isinstance(weight, Tensor) else weight))
        else:
            parts.append(loss.mean() * share)
    return torch.stack(parts).sum()
