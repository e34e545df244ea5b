"""A step that does not fit into the device's memory is taken again in half the micro-batch, on the same samples."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from shared.data.loader import Step
from shared.engine.task import Counted

if TYPE_CHECKING:
    from shared.engine.setup import Training

Found = TypeVar("Found")


class BufferSnapshot:
    """The buffers of a model as they were before a step: forward passes change the statistics of normalisation.

    Kept beside the model: a step costs one copy of its buffers, of all of a kind at once.
    """

    def __init__(self, model: nn.Module) -> None:
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for buffer in model.buffers():
            by_dtype.setdefault(buffer.dtype, []).append(buffer)
        self._pairs = [(live, [torch.empty_like(one) for one in live]) for live in by_dtype.values()]

    @torch.no_grad()
    def take(self) -> None:
        for live, kept in self._pairs:
            torch._foreach_copy_(kept, live)

    @torch.no_grad()
    def restore(self) -> None:
        for live, kept in self._pairs:
            torch._foreach_copy_(live, kept)


def within_memory(training: Training, step: Step, compute: Callable[[Training, Step], Found]) -> Found:
    """``compute(training, step)``, which changes nothing but gradients and buffers; again in half the micro-batch each
    time that the device's memory is too small for it. Further steps stay at that size.

    One process alone does so. Of several, one that ran out would leave the others in a collective call of the step, so
    that the ``OutOfMemoryError`` ends the run, as does that of a single sample.
    """
    if training.group.world > 1:
        return compute(training, step)
    training.buffers.take()
    while True:
        try:
            return compute(training, step)
        except torch.OutOfMemoryError as error:
            largest = max(len(part) for part in training.loader.indices(step.number))
            if largest == 1:
                error.add_note("A single sample at once does not fit; take a smaller network or smaller inputs")
                raise
        # Not within the except clause: the frames of the error hold what the step had computed.
        step = _halved(training, step.number, -(-largest // 2))


def _halved(training: Training, number: int, micro_batch: int) -> Step:
    """Frees what the step left, and makes it anew in micro-batches of the size."""
    for parameter in training.parameters:
        parameter.grad = None
    training.buffers.restore()
    gc.collect()
    if training.group.device.type == "cuda":
        torch.cuda.empty_cache()
    take_micro_batches(training, micro_batch)
    progress = training.progress
    progress.micro_batch, progress.micro_batch_asked = micro_batch, training.recipe.limits.micro_batch
    training.log.say(
        f"out of memory at step {number + 1}: it is taken again, and all further ones are, in micro-batches of "
        f"{micro_batch}; another run begins with them by --limits.micro-batch {micro_batch}"
    )
    training.events.write("out_of_memory", progress.step, micro_batch=micro_batch)
    return training.loader.step(number)


def resume_micro_batch(training: Training) -> str | None:
    """Takes up the size that fitted before the run was interrupted, and says so.

    It holds on the same kind of device, for the same ``limits.micro_batch``; elsewhere it is found anew.
    """
    progress, limits = training.progress, training.recipe.limits
    here = (training.group.name, limits.micro_batch)
    if progress.micro_batch is None or (progress.device, progress.micro_batch_asked) != here:
        progress.micro_batch = progress.micro_batch_asked = None
        return None
    take_micro_batches(training, progress.micro_batch)
    return f"in micro-batches of {progress.micro_batch}, for larger ones did not fit into the memory"


def take_micro_batches(training: Training, size: int) -> None:
    """From now on at most ``size`` samples go through the model at once; the task counts its weights beforehand."""
    training.loader.micro_batch = size
    training.counted = training.task if isinstance(training.task, Counted) else None
