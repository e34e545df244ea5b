"""Retries a step that does not fit into the device's memory, on the same samples with half the micro-batch."""

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

Computed = TypeVar("Computed")


class BufferSnapshot:
    """A copy of a model's buffers from before a step, because forward passes change the statistics of normalisation.

    The copy is allocated once. A step costs one copy of the buffers, with one call for all buffers of a type.
    """

    def __init__(self, model: nn.Module) -> None:
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for buffer in model.buffers():
            by_dtype.setdefault(buffer.dtype, []).append(buffer)
        self._pairs = [(live, [torch.empty_like(buffer) for buffer in live]) for live in by_dtype.values()]

    @torch.no_grad()
    def take(self) -> None:
        for live, saved in self._pairs:
            torch._foreach_copy_(saved, live)

    @torch.no_grad()
    def restore(self) -> None:
        for live, saved in self._pairs:
            torch._foreach_copy_(live, saved)


def retry_on_out_of_memory(training: Training, step: Step, compute: Callable[[Training, Step], Computed]) -> Computed:
    """Returns ``compute(training, step)``, and retries with half the micro-batch each time the device is out of memory.

    Later steps keep the smaller micro-batch. ``compute`` must change only gradients and buffers. Raises torch's
    ``OutOfMemoryError`` if a single sample does not fit, and at once if there are several processes: a process that
    retries would leave the others waiting in a collective of the step.
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
                error.add_note("A single sample does not fit into the memory; use a smaller network or smaller inputs")
                raise
        # Outside the except clause: the traceback's frames keep the tensors of the failed step alive.
        step = _split_step(training, step.number, -(-largest // 2))


def _split_step(training: Training, number: int, micro_batch: int) -> Step:
    """Frees the memory of the failed step and loads the step again in micro-batches of ``micro_batch`` samples."""
    for parameter in training.parameters:
        parameter.grad = None
    training.buffers.restore()
    gc.collect()
    if training.group.device.type == "cuda":
        torch.cuda.empty_cache()
    set_micro_batch(training, micro_batch)
    progress = training.progress
    progress.micro_batch, progress.micro_batch_asked = micro_batch, training.recipe.limits.micro_batch
    training.log.info(
        f"out of memory at step {number + 1}: retrying it, and running all later steps, in micro-batches of "
        f"{micro_batch}; for another run, start with --limits.micro-batch {micro_batch}"
    )
    training.events.write("out_of_memory", progress.step, micro_batch=micro_batch)
    return training.loader.step(number)


def resume_micro_batch(training: Training) -> str | None:
    """Restores the reduced micro-batch of the interrupted run and returns a message, or None if there is none.

    It is restored only on a device of the same name (the GPU's model, or ``cpu``) with the same ``limits.micro_batch``;
    otherwise the run starts with the requested size again.
    """
    progress, limits = training.progress, training.recipe.limits
    current = (training.group.name, limits.micro_batch)
    if progress.micro_batch is None or (progress.device, progress.micro_batch_asked) != current:
        progress.micro_batch = progress.micro_batch_asked = None
        return None
    set_micro_batch(training, progress.micro_batch)
    return f"in micro-batches of {progress.micro_batch}, because larger ones did not fit into the memory"


def set_micro_batch(training: Training, size: int) -> None:
    """Limits later steps to ``size`` samples per forward pass; the task then counts its loss weights beforehand."""
    training.loader.micro_batch = size
    training.counting_task = training.task if isinstance(training.task, Counted) else None
