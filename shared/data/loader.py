"""Batches, made a few steps ahead in threads and brought to the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch

from shared.data.dataset import Batch, Dataset, pinned, to_device
from shared.data.order import Indices, Order, samples_of_rank
from shared.errors import InvalidInputError


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

    ``micro_batch`` is the most samples that a part of a step holds; without it a step is one part. Threads, not
    processes: a batch is a gather in numpy and torch, which release the interpreter lock, and nothing needs to be
    copied between address spaces.
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
    ) -> None:
        if (batch := len(order.indices(0))) < world:
            raise InvalidInputError(
                f"a global batch of {batch} samples cannot be shared by {world} processes; use fewer"
            )
        self.dataset, self.order, self.device, self.micro_batch = dataset, order, device, micro_batch
        self.rank, self.world, self.threads, self.ahead = rank, world, threads, max(ahead, threads)

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

    def steps(self, start: int, stop: int) -> Iterator[Step]:
        """The steps from ``start`` up to but not including ``stop``."""
        # One core for each loading thread: a team of threads of its own would compete with the training step's.
        with ThreadPoolExecutor(self.threads, "loader", initializer=torch.set_num_threads, initargs=(1,)) as pool:
            upcoming = iter(range(start, stop))
            waiting: deque[Future[Step]] = deque(
                pool.submit(self.make, number) for number in islice(upcoming, self.ahead + 1)
            )
            try:
                while waiting:
                    step = waiting.popleft().result()
                    waiting.extend(pool.submit(self.make, number) for number in islice(upcoming, 1))
                    parts = [Part(to_device(part.batch, self.device), part.weight) for part in step.parts]
                    yield Step(step.number, step.epoch, parts)
            finally:
                for future in waiting:
                    future.cancel()
