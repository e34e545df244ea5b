"""A bounded queue in front of the workers of one model, which it supervises and replaces.

Everything here is used from the event loop only.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from shared.serve.metrics import ModelMetrics
from shared.serve.runtime.group_queue import GroupQueue
from shared.serve.runtime.limits import Busy, DurationEstimate, deadline_error
from shared.serve.runtime.slots import Entry, Slot
from shared.serve.runtime.worker import Worker
from shared.serve.runtime.worker_errors import WorkerLost
from shared.serve.worker.handler import checked_reply
from shared.serve.worker.messages import Message

log = logging.getLogger("trivium.serve")
_RETRY_LOADING_S = 5
_MAX_ATTEMPTS = 2


class WorkerPool:
    """Dispatches waiting requests to idle workers in batches.

    Groups of keys take turns, and within a group the oldest request goes first; at most ``capacity`` requests of each
    group may wait. The pool never waits for a batch to fill: it dispatches one as soon as a worker is idle. A batch has
    no more requests than take ``max_batch_s`` together by recent measurements.

    A waiting request that can no longer be answered in time is refused (503), because its worker would have to be ended
    in the middle of it. A request that computes past its deadline is answered with 504 and its worker is ended; the
    other requests of its batch are computed once more. If a worker ends by itself, its requests are answered with 503.
    Either way the worker is replaced. Times are those of ``time.monotonic``. ``on_loading`` is called with each stage
    of loading a worker.
    """

    def __init__(
        self,
        title: str,
        workers: Sequence[Worker],
        *,
        capacity: int,
        metrics: ModelMetrics,
        max_batch_s: float = math.inf,
        on_loading: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._max_batch_s, self._seconds_per_request = max_batch_s, 0.0
        self._batch_time, self._request_time = DurationEstimate(), DurationEstimate()
        self._title, self._capacity, self._metrics = title, capacity, metrics
        self._slots = [Slot(worker) for worker in workers]
        self._queue, self._on_loading = GroupQueue[Entry](), on_loading
        self._first_loaded: asyncio.Future[None] | None = None
        self._closed = False

    async def start(self) -> None:
        """Starts loading the workers, and waits for the first. Raises ``InvalidInputError`` (503) if none can load."""
        self._first_loaded = asyncio.get_running_loop().create_future()
        for slot in self._slots:
            self._load(slot)
        try:
            await asyncio.shield(self._first_loaded)
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
        """A worker's reply to a request of a ``group`` of keys. ``stage`` is called with the current processing stage.

        ``finish_s`` is how long the caller needs to process the reply before the deadline.

        Raises ``Busy``, ``DeadlinePassed``, ``WorkerLost``, or the worker's refusal. If cancelled while waiting, the
        request is dropped. If cancelled while computing, it continues until its deadline, but at most for the time that
        a new worker takes to load.
        """
        if self._closed or self._queue.count(group) >= self._capacity:
            raise Busy(self._title)
        self._retry_failed_workers()
        loop = asyncio.get_running_loop()
        entry = Entry(request, deadline, finish_s, time.monotonic(), loop.create_future(), stage, group)
        self._queue.append(entry)
        self._dispatch()
        if entry.slot is None:
            self._start_timer(entry)
        try:
            reply = await entry.answer
        except asyncio.CancelledError:
            self._handle_cancelled(entry)
            raise
        finally:
            if entry.slot is None and entry.timer is not None:
                entry.timer.cancel()
        return checked_reply(reply, self._title)

    async def drain(self) -> None:
        """Waits until every request is answered, which their deadlines bound."""
        entries = [*self._queue, *(entry for slot in self._slots for entry in slot.batch)]
        if unanswered := {entry.answer for entry in entries if not entry.answer.done()}:
            await asyncio.wait(unanswered)

    async def drain_and_close(self) -> None:
        """Closes the pool once every request is answered, or at once if cancelled."""
        try:
            await self.drain()
        finally:
            self.close()

    def stop_workers(self) -> None:
        """Ends the workers without waiting for their end, as ``close`` does, which must be called next."""
        for slot in self._slots:
            slot.worker.stop()

    def close(self) -> None:
        """Accepts no more requests, refuses those that wait or compute, and ends the workers."""
        self._closed = True
        for entry in (*self._queue, *(entry for slot in self._slots for entry in slot.batch)):
            if entry.timer is not None:
                entry.timer.cancel()
            if not entry.answer.done():
                entry.answer.set_exception(Busy(self._title))
        self._queue.clear()
        for slot in self._slots:
            slot.worker.close()

    def states(self) -> list[dict[str, Any]]:
        """The state of each worker: its process id, memory, number of restarts, and why it cannot compute, if so.

        ``programs`` says which program computes each network, and why.
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
        """Whether the pool is closed and accepts no more requests."""
        return self._closed

    @property
    def max_requests(self) -> int:
        """How many requests all workers together can compute at once."""
        return sum(slot.worker.max_requests for slot in self._slots)

    @property
    def usable(self) -> bool:
        """Whether at least one worker has loaded."""
        return any(slot.state in ("idle", "busy") for slot in self._slots)

    def on_ready(self, worker: Worker) -> None:
        slot = self._slot_of(worker)
        slot.state, slot.failure = "idle", None
        if self._first_loaded is not None and not self._first_loaded.done():
            self._first_loaded.set_result(None)
        self._dispatch()

    def on_stage(self, worker: Worker, stage: str) -> None:
        slot = self._slot_of(worker)
        if slot.state == "loading":
            self._on_loading(stage)
        for entry in slot.batch:
            if entry.stage is not None:
                entry.stage(stage)

    def on_replies(self, worker: Worker, replies: Sequence[Message]) -> None:
        slot = self._slot_of(worker)
        batch, slot.batch = slot.batch, []
        slot.state = "idle"
        duration_s = time.monotonic() - slot.began
        if slot.warm:  # the first batch of a worker is slower: it loads and allocates things once
            self._batch_time.add(duration_s)
            self._request_time.add(duration_s / max(1, len(batch)))
        slot.warm = True
        if len(replies) != len(batch):
            log.error("%s: a worker returned %d replies for %d requests", self._title, len(replies), len(batch))
            replies = [Message({"fault": "wrong number of replies", "number": "0"})] * len(batch)
        heads = [reply.head for reply in replies if "inferences" in reply.head]
        if heads:
            request_s = max(head["infer_s"] for head in heads) / len(heads)
            self._seconds_per_request = (
                request_s if not self._seconds_per_request else (self._seconds_per_request + request_s) / 2
            )
            self._metrics.observe_execution(
                inferences=sum(head["inferences"] for head in heads),
                executions=sum(head["executions"] for head in heads),
                waited_s=sum(slot.began - entry.arrived for entry in batch),
                computed_s=sum(head["infer_s"] for head in heads),
            )
        for entry, reply in zip(batch, replies, strict=True):
            self._detach(entry)
            if not entry.answer.done():
                reply.head["waited_s"] = slot.began - entry.arrived
                entry.answer.set_result(reply)
        self._refuse_hopeless()
        self._dispatch()

    def on_end(self, worker: Worker, reason: str, *, refused: bool) -> None:
        """Called when a worker has ended: its requests are answered or queued again, and it is replaced."""
        slot = self._slot_of(worker)
        batch, slot.batch = slot.batch, []
        loading, retryable = slot.state == "loading", slot.retryable
        slot.retryable = False
        for entry in reversed(batch):
            self._detach(entry)
            if entry.answer.done():
                continue
            if retryable and entry.attempts < _MAX_ATTEMPTS:
                self._queue.put_back(entry)
                self._start_timer(entry)
            else:
                entry.answer.set_exception(WorkerLost(self._title, reason))
        if self._closed:
            return
        if loading or refused:
            if not refused:
                reason = f"its worker ended while loading ({reason})"
                log.error("%s: %s", self._title, reason)
            slot.refused = refused
            self._mark_failed(slot, reason)
            return
        if not retryable:
            log.error("a worker of %s ended (%s) and is replaced", self._title, reason)
        slot.restarts += 1
        self._load(slot)

    def _load(self, slot: Slot) -> None:
        slot.state, slot.warm = "loading", False
        slot.worker.start(self)

    def _mark_failed(self, slot: Slot, reason: str) -> None:
        slot.state, slot.failure, slot.failed_at = "failed", reason, time.monotonic()
        if any(other.state != "failed" for other in self._slots):
            return
        refusal = slot.load_error(_RETRY_LOADING_S)
        if self._first_loaded is not None and not self._first_loaded.done():
            self._first_loaded.set_exception(refusal)
        for entry in self._queue:
            self._detach(entry)
            if not entry.answer.done():
                entry.answer.set_exception(refusal)
        self._queue.clear()

    def _retry_failed_workers(self) -> None:
        """Retries failed workers after a pause. Raises ``InvalidInputError`` if all have failed within that pause."""
        failed = [slot for slot in self._slots if slot.state == "failed"]
        for slot in failed:
            if time.monotonic() - slot.failed_at >= _RETRY_LOADING_S:
                self._load(slot)
        if len(failed) == len(self._slots) and all(slot.state == "failed" for slot in self._slots):
            raise failed[0].load_error(_RETRY_LOADING_S)

    def _dispatch(self) -> None:
        for slot in self._slots:
            if slot.state != "idle" or not self._queue or self._closed:
                continue
            slot.batch = self._take_batch(min(slot.worker.max_requests, self._max_batch_size()))
            slot.state, slot.began = "busy", time.monotonic()
            for entry in slot.batch:
                entry.slot = slot
                entry.attempts += 1
                self._start_timer(entry)
            slot.retryable = not slot.worker.begin([entry.request for entry in slot.batch])
        self._metrics.pending.set(len(self._queue))

    def _take_batch(self, max_requests: int) -> list[Entry]:
        """Takes the next requests out of the queue, only as many as can be computed before the earliest deadline.

        Every request of a batch waits for the whole batch. The first one is not always the oldest, because groups take
        turns.
        """
        batch, remaining_s, now = list[Entry](), math.inf, time.monotonic()
        while self._queue and len(batch) < max_requests:
            entry = self._queue.first
            remaining_s = min(remaining_s, entry.deadline - entry.finish_s - now)
            if batch and (len(batch) + 1) * self._request_time.upper_bound_s > remaining_s:
                break
            batch.append(self._queue.take_first())
        return batch

    def _max_batch_size(self) -> int:
        """The maximum batch size that keeps a batch within its time limit, by recent measurements."""
        if self._seconds_per_request * self._capacity <= self._max_batch_s:
            return self._capacity
        return max(1, int(self._max_batch_s / self._seconds_per_request))

    def _handle_deadline(self, entry: Entry) -> None:
        """Refuses a request that is still waiting, or answers a computing one with an error and ends its worker."""
        if entry.slot is None:
            if not entry.answer.done():
                entry.answer.set_exception(Busy(self._title, "no worker free to answer before the deadline"))
            self._remove_from_queue(entry)
            return
        if not entry.answer.done():
            waited_s = entry.slot.began - entry.arrived
            entry.answer.set_exception(deadline_error(self._title, waited_s, time.monotonic() - entry.slot.began))
        if not entry.slot.retryable and entry.slot.worker.stop():
            entry.slot.retryable = True
            problem = "for a client that is gone" if entry.answer.cancelled() else "past a deadline"
            log.warning("a worker of %s was computing %s; it is ended and replaced", self._title, problem)

    def _handle_cancelled(self, entry: Entry) -> None:
        """Drops a request that waits, or shortens the deadline of one that computes."""
        if entry.slot is None:
            self._remove_from_queue(entry)
            return
        # Stopping it costs the loading of a new worker, so give it as much time.
        entry.deadline = min(entry.deadline, time.monotonic() + entry.slot.worker.load_s)
        self._start_timer(entry)

    def _start_timer(self, entry: Entry) -> None:
        """Starts the timer for the deadline, or for the last moment at which a waiting request can start in time."""
        if entry.timer is not None:
            entry.timer.cancel()
        latest = entry.deadline if entry.slot is not None else entry.deadline - entry.finish_s - self._lead_time_s()
        remaining_s = max(0.0, latest - time.monotonic())
        entry.timer = asyncio.get_running_loop().call_later(remaining_s, self._handle_deadline, entry)

    def _lead_time_s(self) -> float:
        """How many seconds before its deadline a request must start computing, by recent measurements."""
        return max(self._batch_time.upper_bound_s, self._request_time.upper_bound_s)

    def _refuse_hopeless(self) -> None:
        """Refuses waiting requests that can no longer start in time, because batches have become slower."""
        latest = time.monotonic() + self._lead_time_s()
        for entry in [entry for entry in self._queue if entry.deadline - entry.finish_s < latest]:
            if entry.timer is not None:
                self._handle_deadline(entry)

    def _remove_from_queue(self, entry: Entry) -> None:
        if self._queue.remove(entry):
            self._metrics.pending.set(len(self._queue))

    def _detach(self, entry: Entry) -> None:
        entry.slot = None
        if entry.timer is not None:
            entry.timer.cancel()

    def _slot_of(self, worker: Worker) -> Slot:
        return next(slot for slot in self._slots if slot.worker is worker)
