"""A bounded queue before the workers of one model, which are supervised and replaced.

What stands here is used from the event loop alone.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from shared.errors import InvalidInputError
from shared.serve.metrics import ModelMetrics
from shared.serve.runtime.group_queue import GroupQueue
from shared.serve.runtime.limits import Busy, Spread, too_late
from shared.serve.runtime.worker import Worker
from shared.serve.worker.handler import result
from shared.serve.worker.messages import Message

log = logging.getLogger("trivium.serve")
_RETRY_LOADING_S = 5.0
_MAX_RUNS = 2

State = Literal["loading", "idle", "busy", "failed"]


class WorkerLost(Busy):
    """The worker that computed a request ended (503)."""

    def __init__(self, what: str, why: str) -> None:
        InvalidInputError.__init__(
            self, f"the worker that computed this for {what} ended ({why}) and is replaced; try again", status=503
        )
        self.retry_after_s = 5


@dataclass(slots=True, eq=False)
class _Entry:
    """A request that waits or is computed."""

    request: Message
    deadline: float
    finish_s: float
    arrived: float
    answer: asyncio.Future[Message]
    stage: Callable[[str], None] | None
    group: str | None
    runs: int = 0
    slot: _Slot | None = None
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True, eq=False)
class _Slot:
    """A worker, what it computes, and what became of those before it."""

    worker: Worker
    state: State = "loading"
    batch: list[_Entry] = field(default_factory=list)
    began: float = 0.0
    again: bool = False
    """Whether what it computes may be computed again: it did not come to its worker, or a batch mate was too late."""
    warm: bool = False
    """Whether its worker has answered since it loaded."""
    restarts: int = 0
    failure: str | None = None
    failed_at: float = 0.0


class WorkerPool:
    """Gives what waits to the workers that are free, as many requests as one takes at once.

    Groups of keys take turns, and of a group the oldest goes first; ``capacity`` of each may wait. No batch is waited
    for: it leaves when a worker is free, of no more requests than take ``longest_batch_s`` together by the last times.
    What waits until it cannot be answered in time any more is refused (503): a worker that began it would be ended in
    the middle. What is computed past its deadline is answered 504, and its worker is ended; what it computed along with
    it is computed again once. What a worker computes that ends by itself is answered 503. Either way the worker is
    replaced. Times are those of ``time.monotonic``.
    """

    def __init__(
        self,
        what: str,
        workers: Sequence[Worker],
        *,
        capacity: int,
        metrics: ModelMetrics,
        longest_batch_s: float = math.inf,
    ) -> None:
        self._longest_batch_s, self._each_s = longest_batch_s, 0.0
        self._batch, self._share = Spread(), Spread()
        self._what, self._capacity, self._metrics = what, capacity, metrics
        self._slots = [_Slot(worker) for worker in workers]
        self._queue = GroupQueue[_Entry]()
        self._first: asyncio.Future[None] | None = None
        self._closed = False

    async def start(self) -> None:
        """Has the workers load, and waits for the first. Raises ``InvalidInputError`` (503) where none can."""
        self._first = asyncio.get_running_loop().create_future()
        for slot in self._slots:
            self._load(slot)
        try:
            await asyncio.shield(self._first)
        except BaseException:
            self.close()
            raise

    async def answer(
        self,
        request: Message,
        deadline: float,
        stage: Callable[[str], None] | None = None,
        *,
        finish_s: float = 0.0,
        group: str | None = None,
    ) -> Message:
        """A worker's reply. ``stage`` is told what is done with the request, which is of a ``group`` of keys.

        ``finish_s`` is how long the caller will need for the reply before the deadline.

        Raises ``Busy``, ``DeadlinePassed``, ``WorkerLost``, or what the worker refused. When cancelled, a request that
        waits is dropped; one that is computed goes on as long as a new worker would take to load, or to its deadline.
        """
        if self._closed or self._queue.number(group) >= self._capacity:
            raise Busy(self._what)
        self._try_loading_again()
        loop = asyncio.get_running_loop()
        entry = _Entry(request, deadline, finish_s, time.monotonic(), loop.create_future(), stage, group)
        self._queue.append(entry)
        self._give_out()
        if entry.slot is None:
            self._await_deadline(entry)
        try:
            reply = await entry.answer
        except asyncio.CancelledError:
            self._is_left(entry)
            raise
        finally:
            if entry.slot is None and entry.timer is not None:
                entry.timer.cancel()
        return result(reply, self._what)

    async def drain(self) -> None:
        """Waits until everything that it was given is answered, which the deadlines bound."""
        inside = [*self._queue, *(entry for slot in self._slots for entry in slot.batch)]
        if waiting := {entry.answer for entry in inside if not entry.answer.done()}:
            await asyncio.wait(waiting)

    async def end(self) -> None:
        """Closes once all is answered, or at once when cancelled."""
        try:
            await self.drain()
        finally:
            self.close()

    def close(self) -> None:
        """Takes nothing more, refuses what waits or is computed, and ends the workers."""
        self._closed = True
        for entry in (*self._queue, *(entry for slot in self._slots for entry in slot.batch)):
            if entry.timer is not None:
                entry.timer.cancel()
            if not entry.answer.done():
                entry.answer.set_exception(Busy(self._what))
        self._queue.clear()
        for slot in self._slots:
            slot.worker.close()

    def states(self) -> list[dict[str, Any]]:
        """The workers' states, process ids, memory, how often they were replaced, and why they cannot compute.

        ``programs`` is what each network computes with, and why.
        """
        return [
            {
                "state": slot.state,
                **slot.worker.describe(),
                "restarts": slot.restarts,
                "failure": slot.failure,
                "programs": slot.worker.programs,
            }
            for slot in self._slots
        ]

    @property
    def closed(self) -> bool:
        """Whether it takes nothing more."""
        return self._closed

    @property
    def most(self) -> int:
        """How many requests all workers take together at once."""
        return sum(slot.worker.most for slot in self._slots)

    @property
    def usable(self) -> bool:
        """Whether a worker has loaded."""
        return any(slot.state in ("idle", "busy") for slot in self._slots)

    def is_ready(self, worker: Worker) -> None:
        """A worker has loaded."""
        slot = self._slot(worker)
        slot.state, slot.failure = "idle", None
        if self._first is not None and not self._first.done():
            self._first.set_result(None)
        self._give_out()

    def has_stage(self, worker: Worker, stage: str) -> None:
        """A worker says what it does."""
        for entry in self._slot(worker).batch:
            if entry.stage is not None:
                entry.stage(stage)

    def has_replied(self, worker: Worker, replies: Sequence[Message]) -> None:
        """A worker computed what it was given."""
        slot = self._slot(worker)
        batch, slot.batch = slot.batch, []
        slot.state = "idle"
        took = time.monotonic() - slot.began
        if slot.warm:  # what is loaded and allocated with a worker's first batch does not come again
            self._batch.add(took)
            self._share.add(took / max(1, len(batch)))
        slot.warm = True
        if len(replies) != len(batch):
            log.error("%s: a worker gave %d replies to %d requests", self._what, len(replies), len(batch))
            replies = [Message({"fault": "wrong number of replies", "number": "0"})] * len(batch)
        done = [reply.head for reply in replies if "inferences" in reply.head]
        if done:
            each_s = max(head["infer_s"] for head in done) / len(done)
            self._each_s = each_s if not self._each_s else (self._each_s + each_s) / 2
            self._metrics.observe_execution(
                inferences=sum(head["inferences"] for head in done),
                executions=sum(head["executions"] for head in done),
                waited_s=sum(slot.began - entry.arrived for entry in batch),
                computed_s=sum(head["infer_s"] for head in done),
            )
        for entry, reply in zip(batch, replies, strict=True):
            self._settle(entry)
            if not entry.answer.done():
                reply.head["waited_s"] = slot.began - entry.arrived
                entry.answer.set_result(reply)
        self._refuse_late()
        self._give_out()

    def has_ended(self, worker: Worker, why: str, *, refused: bool) -> None:
        """A worker is gone: what it computed is answered, or waits again, and another takes its place."""
        slot = self._slot(worker)
        batch, slot.batch = slot.batch, []
        loading, again = slot.state == "loading", slot.again
        slot.again = False
        for entry in reversed(batch):
            self._settle(entry)
            if entry.answer.done():
                continue
            if again and entry.runs < _MAX_RUNS:
                self._queue.put_back(entry)
                self._await_deadline(entry)
            else:
                entry.answer.set_exception(WorkerLost(self._what, why))
        if self._closed:
            return
        if loading or refused:
            self._has_failed(slot, why if refused else f"its worker ended while it loaded ({why})")
            return
        if not again:
            log.error("a worker of %s ended (%s); another takes its place", self._what, why)
        slot.restarts += 1
        self._load(slot)

    def _load(self, slot: _Slot) -> None:
        slot.state, slot.warm = "loading", False
        slot.worker.start(self)

    def _has_failed(self, slot: _Slot, why: str) -> None:
        slot.state, slot.failure, slot.failed_at = "failed", why, time.monotonic()
        if any(other.state != "failed" for other in self._slots):
            return
        refusal = InvalidInputError(why, status=503)
        if self._first is not None and not self._first.done():
            self._first.set_exception(refusal)
        for entry in self._queue:
            self._settle(entry)
            if not entry.answer.done():
                entry.answer.set_exception(refusal)
        self._queue.clear()

    def _try_loading_again(self) -> None:
        """Has workers that could not load try again; raises where that was tried a moment ago and none is left."""
        failed = [slot for slot in self._slots if slot.state == "failed"]
        for slot in failed:
            if time.monotonic() - slot.failed_at >= _RETRY_LOADING_S:
                self._load(slot)
        if len(failed) == len(self._slots) and all(slot.state == "failed" for slot in self._slots):
            raise InvalidInputError(str(failed[0].failure), status=503)

    def _give_out(self) -> None:
        for slot in self._slots:
            if slot.state != "idle" or not self._queue or self._closed:
                continue
            slot.batch = self._take_batch(min(slot.worker.most, self._most_together()))
            slot.state, slot.began = "busy", time.monotonic()
            for entry in slot.batch:
                entry.slot = slot
                entry.runs += 1
                self._await_deadline(entry)
            slot.again = not slot.worker.begin([entry.request for entry in slot.batch])
        self._metrics.pending.set(len(self._queue))

    def _take_batch(self, most: int) -> list[_Entry]:
        """Takes out what goes next, no more than can be computed before any of it must be answered: each waits for all.

        The first may have come long after another of its batch, which is of a group that had its turn before.
        """
        batch, left_s, now = list[_Entry](), math.inf, time.monotonic()
        while self._queue and len(batch) < most:
            entry = self._queue.first
            left_s = min(left_s, entry.deadline - entry.finish_s - now)
            if batch and (len(batch) + 1) * self._share.bound_s > left_s:
                break
            batch.append(self._queue.take_first())
        return batch

    def _most_together(self) -> int:
        """How many requests take no longer than a batch may, by the last times: its first waits for them all."""
        if self._each_s * self._capacity <= self._longest_batch_s:
            return self._capacity
        return max(1, int(self._longest_batch_s / self._each_s))

    def _is_late(self, entry: _Entry) -> None:
        if entry.slot is None:
            if not entry.answer.done():
                entry.answer.set_exception(Busy(self._what, "no worker free to answer before the deadline"))
            self._drop(entry)
            return
        if not entry.answer.done():
            waited_s = entry.slot.began - entry.arrived
            entry.answer.set_exception(too_late(self._what, waited_s, time.monotonic() - entry.slot.began))
        if not entry.slot.again and entry.slot.worker.stop():
            entry.slot.again = True
            why = "what nobody waits for any more" if entry.answer.cancelled() else "past a deadline"
            log.warning("a worker of %s computed %s; it is ended and replaced", self._what, why)

    def _is_left(self, entry: _Entry) -> None:
        if entry.slot is None:
            self._drop(entry)
            return
        # To stop it costs the loading of another worker.
        entry.deadline = min(entry.deadline, time.monotonic() + entry.slot.worker.load_s)
        self._await_deadline(entry)

    def _await_deadline(self, entry: _Entry) -> None:
        if entry.timer is not None:
            entry.timer.cancel()
        latest = entry.deadline if entry.slot is not None else entry.deadline - entry.finish_s - self._bound_s()
        left = max(0.0, latest - time.monotonic())
        entry.timer = asyncio.get_running_loop().call_later(left, self._is_late, entry)

    def _bound_s(self) -> float:
        """How long before its time is over a request must be begun to be answered, by the last times."""
        return max(self._batch.bound_s, self._share.bound_s)

    def _refuse_late(self) -> None:
        """Refuses what waited and cannot be begun in time any more: times have grown since its timer was set."""
        latest = time.monotonic() + self._bound_s()
        for entry in [entry for entry in self._queue if entry.deadline - entry.finish_s < latest]:
            if entry.timer is not None:
                self._is_late(entry)

    def _drop(self, entry: _Entry) -> None:
        if self._queue.remove(entry):
            self._metrics.pending.set(len(self._queue))

    def _settle(self, entry: _Entry) -> None:
        entry.slot = None
        if entry.timer is not None:
            entry.timer.cancel()

    def _slot(self, worker: Worker) -> _Slot:
        return next(slot for slot in self._slots if slot.worker is worker)
