"""Scores a model on a data set, and says beforehand what the scores will be called."""

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
    """Scores ``model`` on the whole of ``dataset``, shared by the processes; the same result on each of them.

    ``model`` is left in evaluation mode.
    """
    model.eval()
    scores = task.scores()
    mine = np.arange(len(dataset), dtype=np.int64)[group.rank :: group.world]
    for start in range(0, len(mine), batch):
        samples = to_device(dataset.batch(mine[start : start + batch], None), group.device)
        with autocast(dtype, group.device):
            task.evaluate(model, samples, scores)
    merged, *others = group.gather(scores)
    for other in others:
        merged.merge(other)
    return merged.summary()


def refuse_unknown_monitor(
    monitor: str,
    model: nn.Module,
    task: Task,
    dataset: Dataset,
    batch: int,
    group: Group,
    dtype: torch.dtype | None = None,
) -> None:
    """Refuses a ``monitor`` that is not among the scores, before anything is trained.

    The names are looked for where they cost least: in scores that have seen nothing, then in those of one batch, and
    only then in those of the whole data set, for a score may be there only where its class occurs. Where scores have
    no value yet at the first two, nothing is said; the first evaluation of the run will tell.
    """
    first = _First(dataset, min(batch, len(dataset)))
    looks: tuple[Callable[[], Mapping[str, float]], ...] = (
        lambda: task.scores().summary(),
        lambda: evaluate(model, task, first, batch, Group(0, 1, group.device), dtype),
    )
    names: set[str] = set()
    for look in looks:
        with warnings.catch_warnings(), suppress(ArithmeticError, LookupError, ValueError):
            warnings.simplefilter("ignore")
            names |= look().keys()
        if monitor in names:
            return
    if names and monitor not in (names := names | evaluate(model, task, dataset, batch, group, dtype).keys()):
        raise InvalidInputError(f"limits.monitor is {monitor!r}, and the task scores {', '.join(sorted(names))}")


class _First:
    """The first samples of a data set."""

    def __init__(self, dataset: Dataset, length: int) -> None:
        self._length, self.batch = length, dataset.batch

    def __len__(self) -> int:
        return self._length
