"""Dynamic batching: a bounded queue and a thread for each model; what waits together is computed together."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from shared.serve.metrics import ModelMetrics
from shared.serve.runtime.limits import Busy, DeadlinePassed

Item = TypeVar("Item")
Answer = TypeVar("Answer")
log = logging.getLogger("trivium.serve")


@dataclass(slots=True, eq=False)
class _Entry(Generic[Item, Answer]):
    item: Item
    kind: Hashable
    size: int
    deadline: float
    arrived: float
    future: Future[Answer] = field(default_factory=Future)


class BatchQueue(Generic[Item, Answer]):
    """Computes items in batches on a thread of its own, the oldest first.

    A batch holds items of one ``kind`` whose ``size``s sum to at most ``max_batch``; an item larger than that is
    computed alone. Once the first item is there, others are waited for ``max_delay_s``. What is past its deadline is
    not computed. Where a batch fails, its items are computed one by one, so that a bad one spoils only its own.
    Deadlines and times are those of ``time.monotonic``.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Item]], Sequence[Answer]],
        *,
        name: str,
        capacity: int,
        max_batch: int,
        max_delay_s: float,
        metrics: ModelMetrics,
        kind: Callable[[Item], Hashable] = lambda _: None,
        size: Callable[[Item], int] = lambda _: 1,
    ) -> None:
        self._compute, self._name, self._metrics = compute, name, metrics
        self._capacity, self._max_batch, self._max_delay_s = capacity, max_batch, max_delay_s
        self._kind, self._size = kind, size
        self._queue: deque[_Entry[Item, Answer]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"queue-{name}", daemon=True)
        self._thread.start()

    async def answer(self, item: Item, deadline: float) -> Answer:
        """Queues an item and awaits its answer; when cancelled, what still waits is not computed.

        Raises ``Busy``, ``DeadlinePassed``, or what ``compute`` raised.
        """
        return await asyncio.wrap_future(self.submit(item, deadline))

    def submit(self, item: Item, deadline: float) -> Future[Answer]:
        """Queues an item. Raises ``Busy`` where the queue is full or closed."""
        entry: _Entry[Item, Answer] = _Entry(item, self._kind(item), self._size(item), deadline, time.monotonic())
        with self._changed:
            self._drop_settled()
            if self._closed or len(self._queue) >= self._capacity:
                raise Busy(self._name)
            self._queue.append(entry)
            self._metrics.pending.set(len(self._queue))
            self._changed.notify_all()
        return entry.future

    def close(self) -> None:
        """Takes nothing more, refuses what waits, and lets what is being computed come to its end."""
        with self._changed:
            self._closed = True
            for entry in self._queue:
                if entry.future.set_running_or_notify_cancel():
                    entry.future.set_exception(Busy(self._name))
            self._queue.clear()
            self._changed.notify_all()

    def _work(self) -> None:
        while (batch := self._gather()) is not None:
            if batch:
                self._run(batch)

    def _gather(self) -> list[_Entry[Item, Answer]] | None:
        """The next batch (empty where everything that waited was too late), or None when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            if self._closed:
                return None
            until = self._queue[0].arrived + self._max_delay_s
            while not self._closed and self._ready_size() < self._max_batch:
                if (left := until - time.monotonic()) <= 0 or not self._changed.wait(left):
                    break
            self._drop_settled()
            batch: list[_Entry[Item, Answer]] = []
            total = 0
            for entry in list(self._queue):
                if batch and (entry.kind != batch[0].kind or total + entry.size > self._max_batch):
                    continue
                self._queue.remove(entry)
                if entry.future.set_running_or_notify_cancel():
                    batch.append(entry)
                    total += entry.size
            self._metrics.pending.set(len(self._queue))
            return batch

    def _ready_size(self) -> int:
        return sum(entry.size for entry in self._queue if entry.kind == self._queue[0].kind) if self._queue else 0

    def _drop_settled(self) -> None:
        """Takes out what its caller gave up, and settles what is too late."""
        now = time.monotonic()
        for entry in [entry for entry in self._queue if entry.future.cancelled() or entry.deadline <= now]:
            self._queue.remove(entry)
            if entry.future.set_running_or_notify_cancel():
                entry.future.set_exception(DeadlinePassed(self._name))

    def _run(self, batch: list[_Entry[Item, Answer]]) -> None:
        began = time.monotonic()
        try:
            answers = self._compute([entry.item for entry in batch])
            if len(answers) != len(batch):
                raise RuntimeError(f"{self._name} gave {len(answers)} answers to {len(batch)} inputs")
        except BaseException as error:
            if len(batch) == 1:
                # What is no Exception would end the event loop that awaits it, and StopIteration cannot be awaited.
                awaitable = isinstance(error, Exception) and not isinstance(error, StopIteration)
                batch[0].future.set_exception(error if awaitable else RuntimeError(f"{self._name}: {error!r}"))
                return
            log.warning("%s: a batch of %d failed (%s); computing its items one by one", self._name, len(batch), error)
            for entry in batch:
                self._run([entry])
            return
        self._metrics.executed(
            inferences=sum(entry.size for entry in batch),
            waited_s=sum(began - entry.arrived for entry in batch),
            computed_s=time.monotonic() - began,
            requests=len(batch),
        )
        for entry, answer in zip(batch, answers, strict=True):
            entry.future.set_result(answer)
