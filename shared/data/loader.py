"""Batches, made a few steps ahead in threads and brought to the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from shared.data.dataset import Batch, Dataset, pinned, to_device
from shared.data.order import Order, share
from shared.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Step:
    """One step's work for one process.

    ``number`` counts from 0 over the whole run; ``weight`` is this process's share of the global batch times the
    number of processes, so that the mean of the weighted local means over processes is the global mean.
    """

    number: int
    epoch: int
    batch: Batch
    weight: float


class Loader:
    """The batches of ``dataset`` in ``order`` for process ``rank`` of ``world``, ``ahead`` steps in advance.

    Threads, not processes: a batch is a gather in numpy and torch, which release the interpreter lock, and nothing
    needs to be copied between address spaces.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: Order,
        *,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
        threads: int = 1,
        ahead: int = 2,
    ) -> None:
        if (batch := min(order.batch, order.length)) < world:
            raise InvalidInputError(
                f"a global batch of {batch} samples cannot be shared by {world} processes; use fewer"
            )
        self.dataset, self.order, self.device = dataset, order, device
        self.rank, self.world, self.threads, self.ahead = rank, world, threads, max(ahead, threads)

    def _make(self, number: int) -> Step:
        indices = self.order.indices(number)
        mine = share(indices, self.rank, self.world)
        key = self.order.key(number)
        batch = self.dataset.batch(mine, key)
        if self.device.type == "cuda":
            batch = pinned(batch)
        return Step(number, key.epoch, batch, len(mine) * self.world / len(indices))

    def steps(self, start: int, stop: int) -> Iterator[Step]:
        """The steps from ``start`` up to but not including ``stop``."""
        # One core for each loading thread: a team of threads of its own would compete with the training step's.
        with ThreadPoolExecutor(self.threads, "loader", initializer=torch.set_num_threads, initargs=(1,)) as pool:
            waiting: deque[Future[Step]] = deque()
            upcoming = iter(range(start, stop))
            try:
                for number in upcoming:
                    waiting.append(pool.submit(self._make, number))
                    if len(waiting) > self.ahead:
                        break
                while waiting:
                    step = waiting.popleft().result()
                    for number in upcoming:
                        waiting.append(pool.submit(self._make, number))
                        break
                    yield Step(step.number, step.epoch, to_device(step.batch, self.device), step.weight)
            finally:
                for future in waiting:
                    future.cancel()
