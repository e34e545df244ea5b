"""Scores a model on a data set, and checks in advance that the monitored score exists."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress

import numpy as np
import torch
from torch import nn

from shared.comms.group import Group
from shared.data.dataset import Dataset, to_device
from shared.engine.task import Task
from shared.errors import InvalidInputError
from shared.precision import autocast


@torch.no_grad()
def evaluate(
    model: nn.Module,
    task: Task,
    dataset: Dataset,
    batch: int,
    group: Group,
    dtype: torch.dtype | None = None,
) -> dict[str, float]:
    """Scores ``model`` on all samples of ``dataset`` in batches of ``batch``, and returns the scores by name.

    The processes share the samples and all return the same scores, as floats: a summary may have tensors. Leaves
    ``model`` in evaluation mode.
    """
    model.eval()
    scores = task.scores()
    own_indices = np.arange(len(dataset), dtype=np.int64)[group.rank :: group.world]
    for start in range(0, len(own_indices), batch):
        samples = to_device(dataset.batch(own_indices[start : start + batch], None), group.device)
        with autocast(dtype, group.device):
            task.evaluate(model, samples, scores)
    merged, *remaining = group.gather(scores)
    for process_scores in remaining:
        merged.merge(process_scores)
    return {name: float(value) for name, value in merged.summary().items()}


def refuse_unknown_monitor(
    monitor: str,
    model: nn.Module,
    task: Task,
    dataset: Dataset,
    batch: int,
    group: Group,
    dtype: torch.dtype | None = None,
) -> None:
    """Raises ``InvalidInputError`` before training if the scores do not include ``monitor``.

    Tries the cheapest source of score names first: empty scores, then one batch, and only then the whole data set,
    because some scores exist only if their class occurs. If the first two yield no names at all, the check is left to
    the first evaluation of the run.
    """
    first_samples = _FirstSamples(dataset, min(batch, len(dataset)))
    score_sources: tuple[Callable[[], Mapping[str, float]], ...] = (
        lambda: task.scores().summary(),
        lambda: evaluate(model, task, first_samples, batch, Group(0, 1, group.device), dtype),
    )
    names: set[str] = set()
    for compute_scores in score_sources:
        with warnings.catch_warnings(), suppress(ArithmeticError, LookupError, ValueError):
            warnings.simplefilter("ignore")
            names |= compute_scores().keys()
        if monitor in names:
            return
    if names and monitor not in (names := names | evaluate(model, task, dataset, batch, group, dtype).keys()):
        raise InvalidInputError(f"limits.monitor is {monitor!r}, but the task's scores are {', '.join(sorted(names))}")


class _FirstSamples:
    """The first samples of a data set."""

    def __init__(self, dataset: Dataset, length: int) -> None:
        self._length, self.batch = length, dataset.batch

    def __len__(self) -> int:
        return self._length
