"""One number to descend, from the losses of a batch that micro-batches and processes share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from shared.comms.group import Group
from shared.data.dataset import Batch
from shared.data.loader import Part
from shared.engine.task import Loss, WeightedLoss
from shared.errors import InvalidInputError

Factors = Mapping[str, Tensor]
"""By the name of a loss, what a part's mean is multiplied with."""


def count_factors(
    count: Callable[[Batch], Mapping[str, Tensor | float]], parts: Sequence[Part], group: Group
) -> list[Factors]:
    """The factors of each part by what the task counts in it, over what it counts in the whole batch.

    They are known before the forward passes, and their sum over the parts of all processes is the number of
    processes, over which gradients are averaged.
    """
    counts = [count(part.batch) for part in parts]
    names = sorted(counts[0])
    if not names:
        return [{} for _ in parts]
    own = torch.stack(
        [
            torch.stack([torch.as_tensor(c[name], dtype=torch.float64, device=group.device) for name in names])
            for c in counts
        ]
    )
    # Where nothing is counted in the whole batch, the means are zero everywhere.
    factors = own * group.world / group.sum(own.sum(dim=0)).clamp(min=1e-12)
    return [dict(zip(names, row, strict=True)) for row in factors.unbind()]


def weighted_terms(
    found: Loss | Mapping[str, Loss], weight: float, group: Group, factors: Factors | None = None, *, parts: int = 1
) -> dict[str, Tensor]:
    """The losses of a part by name, so scaled that their sum over parts is, averaged over processes, the batch's loss.

    ``weight`` is the part's fraction of the global batch, by which a mean over samples is scaled. A ``WeightedLoss``
    is scaled by its fraction of the weight: by ``factors`` where the task counts, else by a collective call after the
    forward pass, which is too late where the batch has several parts.
    """
    losses = found if isinstance(found, Mapping) else {"loss": found}
    known = factors or {}
    late = {name: loss for name, loss in losses.items() if isinstance(loss, WeightedLoss) and name not in known}
    if late and parts > 1:
        raise InvalidInputError(
            f"the loss {next(iter(late))} is a WeightedLoss that the task does not count before the forward pass, so "
            "that a batch cannot be taken in micro-batches: give the task count(batch), or take a smaller limits.batch "
            "and no limits.micro_batch"
        )
    if late and group.world > 1:
        known = {**known, **_late_factors(late, group)}
    terms = {}
    for name, loss in losses.items():
        mean = loss.mean if isinstance(loss, WeightedLoss) else loss if loss.ndim == 0 else loss.mean()
        if name in known:
            terms[name] = mean * known[name].to(mean.dtype)
        elif isinstance(loss, WeightedLoss) or weight * group.world == 1:
            terms[name] = mean
        else:
            terms[name] = mean * (weight * group.world)
    return terms


def _late_factors(losses: Mapping[str, WeightedLoss], group: Group) -> Factors:
    own = torch.stack(
        [torch.as_tensor(loss.weight, dtype=torch.float64, device=group.device) for loss in losses.values()]
    )
    factors = own * group.world / group.sum(own).clamp(min=1e-12)
    return dict(zip(losses, factors.unbind(), strict=True))


def combine(found: Loss | Mapping[str, Loss], weight: float, group: Group) -> Tensor:
    """The sum of the losses of a part, weighted as in ``weighted_terms``."""
    return total(weighted_terms(found, weight, group))


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """The sum of the terms."""
    values = list(terms.values())
    return values[0] if len(values) == 1 else torch.stack(values).sum()
