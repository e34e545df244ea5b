"""Batches, made a few steps ahead in threads and brought to the device."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch

from shared.data.dataset import Batch, Dataset, pinned, to_device
from shared.data.order import Indices, Order, samples_of_rank
from shared.errors import InvalidInputError

_SLOW_IN_A_ROW = 3
"""After how many slow batches, one after the other, batches are made ahead in threads."""


_SWITCH_S = 2e-4
"""After how long a thread that makes batches leaves the interpreter lock to the training step.

A step is thousands of short operations, before each of which the lock is asked for. With CPython's 5 ms a step that
took 0.15 s alone took 0.32 beside a thread that painted the next patches, and 0.21 with this (the nodule detector).
"""


class Part(NamedTuple):
    """A micro-batch: what goes through the model at once.

    ``weight`` is its fraction of the samples of the global batch; the weights of all parts on all processes sum to 1.
    """

    batch: Batch
    weight: float


class Step(NamedTuple):
    """One step's work for one process. ``number`` counts from 0 over the whole run."""

    number: int
    epoch: int
    parts: Sequence[Part]


class Loader:
    """The batches of ``dataset`` in ``order`` for process ``rank`` of ``world``, ``ahead`` steps in advance.

    ``micro_batch`` is the most samples that a part of a step holds; without it a step is one part. It may change
    between two steps: those that were made ahead are made anew.

    Threads, not processes: a batch is a gather in numpy and torch, which release the interpreter lock, and nothing
    needs to be copied between address spaces. Batches that take less than ``handover_s`` seconds are made where they
    are needed: a thread that competes for the interpreter lock would slow the step more than it spares.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: Order,
        *,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
        micro_batch: int | None = None,
        threads: int = 1,
        ahead: int = 2,
        handover_s: float = 5e-4,
    ) -> None:
        if (batch := len(order.indices(0))) < world:
            raise InvalidInputError(
                f"a global batch of {batch} samples cannot be shared by {world} processes; use fewer"
            )
        self.dataset, self.order, self.device, self.micro_batch = dataset, order, device, micro_batch
        self.rank, self.world, self.threads, self.ahead = rank, world, threads, max(ahead, threads)
        self.handover_s = handover_s

    def indices(self, number: int) -> list[Indices]:
        """The samples of step ``number`` that this process takes, a micro-batch each."""
        mine = samples_of_rank(self.order.indices(number), self.rank, self.world)
        if self.micro_batch is None or len(mine) <= self.micro_batch:
            return [mine]
        return np.array_split(mine, -(-len(mine) // self.micro_batch))

    def make(self, number: int) -> Step:
        """The work of step ``number``, not yet on the device."""
        key, samples = self.order.key(number), len(self.order.indices(number))
        parts = [Part(self.dataset.batch(part, key), len(part) / samples) for part in self.indices(number)]
        if self.device.type == "cuda":
            parts = [Part(pinned(part.batch), part.weight) for part in parts]
        return Step(number, key.epoch, parts)

    def step(self, number: int) -> Step:
        """The work of step ``number``, on the device."""
        return self._on_device(self.make(number))

    def steps(self, start: int, stop: int) -> Iterator[Step]:
        """The steps from ``start`` up to but not including ``stop``."""
        upcoming = iter(range(start, stop))
        slow = 0
        # One may be slow for what is done once, or because the machine was busy.
        while slow < _SLOW_IN_A_ROW and (number := next(upcoming, None)) is not None:
            began = time.perf_counter()
            step = self.make(number)
            slow = slow + 1 if time.perf_counter() - began >= self.handover_s else 0
            yield self._on_device(step)
        if slow == _SLOW_IN_A_ROW:
            yield from self._ahead(upcoming)

    def _ahead(self, upcoming: Iterator[int]) -> Iterator[Step]:
        # One core for each loading thread: a team of threads of its own would compete with the training step's.
        with (
            _quick_switches(),
            ThreadPoolExecutor(self.threads, "loader", initializer=torch.set_num_threads, initargs=(1,)) as pool,
        ):
            waiting: deque[Future[Step]] = deque(
                pool.submit(self.make, number) for number in islice(upcoming, self.ahead + 1)
            )
            try:
                while waiting:
                    step = waiting.popleft().result()
                    waiting.extend(pool.submit(self.make, number) for number in islice(upcoming, 1))
                    yield self._on_device(step)
            finally:
                for future in waiting:
                    future.cancel()

    def _on_device(self, step: Step) -> Step:
        if len(step.parts) != len(self.indices(step.number)):
            step = self.make(step.number)  # it was made before ``micro_batch`` changed
        parts = [Part(to_device(part.batch, self.device), part.weight) for part in step.parts]
        return Step(step.number, step.epoch, parts)


@contextmanager
def _quick_switches() -> Iterator[None]:
    """While it lasts, threads take turns after ``_SWITCH_S`` at the latest, in the whole process."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, _SWITCH_S))
    try:
        yield
    finally:
        sys.setswitchinterval(before)
