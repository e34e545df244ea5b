"""Loads batches a few steps ahead in threads and moves them to the device."""

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

_SLOW_BATCHES_BEFORE_THREADS = 3
"""After this many consecutive slow batches, further batches are loaded ahead in threads."""
_AHEAD = 2
"""How many steps, at least, are loaded in advance."""

_SWITCH_INTERVAL_S = 2e-4
"""The interpreter's switch interval while loader threads run: how long one may keep the interpreter lock.

A training step consists of thousands of short operations, and each of them requests the lock. For the nodule detector a
step took 0.15 s alone, 0.32 s beside a thread that rendered the next patches with CPython's default interval of 5 ms,
and 0.21 s with this interval.
"""


class Part(NamedTuple):
    """A micro-batch: the samples of one forward pass.

    ``weight`` is its fraction of the global batch; the weights of all micro-batches on all processes sum to 1.
    """

    batch: Batch
    weight: float


class Step(NamedTuple):
    """The micro-batches of one training step for one process. ``number`` counts from 0 over the whole run."""

    number: int
    epoch: int
    parts: Sequence[Part]


class Loader:
    """Loads the batches of ``dataset`` in ``order`` for process ``rank`` of ``world``, a few steps in advance.

    ``micro_batch`` is the maximum number of samples in a part of a step; if it is None, a step has one part. It may
    change between two steps: steps that were loaded ahead are then loaded again.

    Uses threads instead of processes: collating is a gather in numpy and torch, which release the interpreter lock, and
    nothing needs to be copied between address spaces. Batches that take less than ``handover_s`` seconds are loaded in
    the training thread: a thread that competes for the interpreter lock would cost more than it saves.
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
        handover_s: float = 5e-4,
    ) -> None:
        if (batch := len(order.indices(0))) < world:
            raise InvalidInputError(
                f"a global batch of {batch} samples cannot be split over {world} processes; use fewer processes"
            )
        self.dataset, self.order, self.device, self.micro_batch = dataset, order, device, micro_batch
        self.rank, self.world, self.threads = rank, world, threads
        self.handover_s = handover_s

    def indices(self, number: int) -> list[Indices]:
        """The sample indices of step ``number`` for this process, one array for each micro-batch."""
        # A copy: an order's arrays are read-only, and torch warns if a tensor is indexed with such an array.
        own_samples = samples_of_rank(self.order.indices(number), self.rank, self.world).copy()
        if self.micro_batch is None or len(own_samples) <= self.micro_batch:
            return [own_samples]
        return np.array_split(own_samples, -(-len(own_samples) // self.micro_batch))

    def make(self, number: int) -> Step:
        """Loads step ``number``, not yet on the device."""
        key, samples = self.order.key(number), len(self.order.indices(number))
        parts = [Part(self.dataset.batch(part, key), len(part) / samples) for part in self.indices(number)]
        if self.device.type == "cuda":
            parts = [Part(pinned(part.batch), part.weight) for part in parts]
        return Step(number, key.epoch, parts)

    def step(self, number: int) -> Step:
        """Loads step ``number`` and moves it to the device."""
        return self._to_device(self.make(number))

    def steps(self, start: int, stop: int) -> Iterator[Step]:
        """The steps from ``start`` up to but not including ``stop``, on the device."""
        upcoming = iter(range(start, stop))
        slow_batches = 0
        # A single batch may be slow because of one-time work or a busy machine.
        while slow_batches < _SLOW_BATCHES_BEFORE_THREADS and (number := next(upcoming, None)) is not None:
            start_time = time.perf_counter()
            step = self.make(number)
            slow_batches = slow_batches + 1 if time.perf_counter() - start_time >= self.handover_s else 0
            yield self._to_device(step)
        if slow_batches == _SLOW_BATCHES_BEFORE_THREADS:
            yield from self._load_ahead(upcoming)

    def _load_ahead(self, upcoming: Iterator[int]) -> Iterator[Step]:
        # One core for each loader thread: torch's own thread pool there would compete with the training step's.
        with (
            _short_switch_interval(),
            ThreadPoolExecutor(self.threads, "loader", initializer=torch.set_num_threads, initargs=(1,)) as pool,
        ):
            pending: deque[Future[Step]] = deque(
                pool.submit(self.make, number) for number in islice(upcoming, max(_AHEAD, self.threads) + 1)
            )
            try:
                while pending:
                    step = pending.popleft().result()
                    pending.extend(pool.submit(self.make, number) for number in islice(upcoming, 1))
                    yield self._to_device(step)
            finally:
                for future in pending:
                    future.cancel()

    def _to_device(self, step: Step) -> Step:
        if len(step.parts) != len(self.indices(step.number)):
            step = self.make(step.number)  # it was loaded before ``micro_batch`` changed
        parts = [Part(to_device(part.batch, self.device), part.weight) for part in step.parts]
        return Step(step.number, step.epoch, parts)


@contextmanager
def _short_switch_interval() -> Iterator[None]:
    """Within the context all threads of the process switch after at most ``_SWITCH_INTERVAL_S``."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, _SWITCH_INTERVAL_S))
    try:
        yield
    finally:
        sys.setswitchinterval(before)
