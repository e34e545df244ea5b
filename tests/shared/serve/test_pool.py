"""The queue in front of a model's workers, and what happens to requests whose worker ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from shared.errors import InvalidInputError
from shared.serve.metrics import Metrics
from shared.serve.runtime import pool as pool_module
from shared.serve.runtime.limits import Busy, DeadlinePassed
from shared.serve.runtime.pool import WorkerLost, WorkerPool
from shared.serve.runtime.worker import WorkerListener
from shared.serve.worker.handler import OutOfMemory, WorkerFault, refusal_reply
from shared.serve.worker.messages import Message


class Scripted:
    """A worker that the test controls."""

    def __init__(self, most: int = 2, load_s: float = 60.0) -> None:
        self.max_requests, self.load_s = most, load_s
        self.programs = {"net": "onnx: it was requested"}
        self.batches: list[list[int]] = []
        self.starts = self.stops = 0
        self.closed, self.gone = False, False

    def start(self, listener: WorkerListener) -> None:
        self.starts += 1
        self.listener = listener

    def ready(self) -> None:
        self.listener.on_ready(self)

    def begin(self, batch: Sequence[Message]) -> bool:
        self.batches.append([message.head["n"] for message in batch])
        return not self.gone

    def reply(self, *replies: Message) -> None:
        statistics = {"inferences": 1, "executions": 1, "infer_s": 0.1}
        default_replies = [Message({**statistics, "n": -n}) for n in self.batches[-1]]
        self.listener.on_replies(self, replies or default_replies)

    def end(self, why: str = "SIGABRT", refused: bool = False) -> None:
        self.listener.on_end(self, why, refused=refused)

    def stop(self) -> bool:
        self.stops += 1
        return True

    def close(self) -> None:
        self.closed = True

    def describe(self) -> dict[str, int | None]:
        return {"pid": 1, "memory_bytes": 2}


def play(
    script: Callable[..., Awaitable[None]], *workers: Scripted, capacity: int = 10, ready: bool = True, **options: Any
) -> None:
    """Runs the script with a pool of the workers, which are ready by default."""

    async def run() -> None:
        pool = WorkerPool("it", workers, capacity=capacity, metrics=Metrics().of("it", "1"), **options)
        starting = asyncio.ensure_future(pool.start())
        await asyncio.sleep(0)
        if ready:
            for worker in workers:
                worker.ready()
            await starting
            await script(pool, *workers)
        else:
            await script(pool, starting, *workers)

    asyncio.run(run())


async def ask(pool: WorkerPool, *numbers: int, deadline_s: float = 20) -> list[asyncio.Task[Message]]:
    deadline = pool_module.time.monotonic() + deadline_s
    tasks = [asyncio.ensure_future(pool.answer(Message({"n": n}), deadline)) for n in numbers]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def value(task: asyncio.Task[Message]) -> Any:
    return (await task).head["n"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The pool's clock, which stands still; ``clock.now += seconds`` turns it on. Its timers run in real time."""
    clock = SimpleNamespace(now=1000.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(pool_module, "time", clock)
    return clock


def test_a_single_request_is_dispatched_at_once_and_later_ones_form_a_batch() -> None:
    async def script(pool: WorkerPool, worker: Scripted) -> None:
        tasks = await ask(pool, 1, 2, 3, 4)
        assert worker.batches == [[1]]
        worker.reply()
        worker.reply()
        worker.reply()
        assert worker.batches == [[1], [2, 3], [4]]
        assert [await value(task) for task in tasks] == [-1, -2, -3, -4]

    play(script, Scripted())


def test_a_batch_is_limited_by_its_expected_duration() -> None:
    async def script(pool: WorkerPool, worker: Scripted) -> None:
        tasks = await ask(pool, *range(8))
        for _ in range(4):
            worker.reply()  # each batch takes a tenth of a second
        assert worker.batches == [[0], [1, 2], [3, 4, 5], [6, 7]]
        assert [await value(task) for task in tasks] == [-n for n in range(8)]

    play(script, Scripted(most=8), max_batch_s=0.25)


def test_any_idle_worker_takes_the_oldest_request() -> None:
    async def script(pool: WorkerPool, first: Scripted, second: Scripted) -> None:
        tasks = await ask(pool, 1, 2, 3)
        assert (first.batches, second.batches) == ([[1]], [[2]])
        second.reply()
        first.reply()
        second.reply()
        assert second.batches == [[2], [3]] and [await value(task) for task in tasks] == [-1, -2, -3]

    play(script, Scripted(), Scripted())


def test_requests_above_the_capacity_are_refused() -> None:
    async def script(pool: WorkerPool, worker: Scripted) -> None:
        tasks = await ask(pool, 1, 2, 3, 4)
        with pytest.raises(Busy) as raised:
            await tasks[3]
        assert raised.value.status == 503
        worker.reply()
        worker.reply()
        assert [await value(task) for task in tasks[:3]] == [-1, -2, -3]

    play(script, Scripted(), capacity=2)


def test_a_worker_that_ends_loses_only_its_own_requests_and_is_replaced() -> None:
    async def script(pool: WorkerPool, first: Scripted, second: Scripted) -> None:
        tasks = await ask(pool, 1, 2, 3)
        first.end("SIGKILL")
        with pytest.raises(WorkerLost, match="SIGKILL") as lost:
            await tasks[0]
        assert lost.value.status == 503 and lost.value.retry_after_s == 5
        assert first.starts == 2 and pool.states()[0]["restarts"] == 1 and pool.usable
        assert pool.states()[0]["programs"] == {"net": "onnx: it was requested"}
        second.reply()
        second.reply()
        assert [await value(task) for task in tasks[1:]] == [-2, -3]

    play(script, Scripted(), Scripted())


def test_a_request_that_did_not_reach_its_worker_goes_to_another() -> None:
    async def script(pool: WorkerPool, worker: Scripted) -> None:
        worker.gone = True
        (task,) = await ask(pool, 1)
        worker.end("SIGKILL")
        worker.gone = False
        worker.ready()
        worker.reply()
        assert worker.batches == [[1], [1]] and await value(task) == -1

    play(script, Scripted())


def test_a_request_past_its_deadline_is_stopped_and_the_rest_of_its_batch_is_retried(clock: SimpleNamespace) -> None:
    async def script(pool: WorkerPool, worker: Scripted) -> None:
        (first,) = await ask(pool, 0)
        (late,) = await ask(pool, 1, deadline_s=20)
        (mate,) = await ask(pool, 2, deadline_s=60)
        clock.now += 19.99
        worker.reply()
        clock.now += 20
        assert worker.batches[-1] == [1, 2] and await value(first) == 0
        with pytest.raises(DeadlinePassed) as passed:
            await late
        assert passed.value.status == 504 and worker.stops == 1
        worker.end("SIGKILL")
        assert worker.starts == 2 and not mate.done()
        worker.ready()
        assert worker.batches[-1] == [2]
        worker.reply()
        assert await value(mate) == -2

    play(script, Scripted())


def test_a_request_that_cannot_start_in_time_is_refused_and_never_computed(clock: SimpleNamespace) -> None:
    async def script(pool: WorkerPool, worker: Scripted) -> None:
        for number in (8, 0):
            (measured,) = await ask(pool, number)
            clock.now += 20
            worker.reply()
        (first,) = await ask(pool, 1)
        for deadline_s, finish_s in ((10.0, 0.0), (120.0, 70.0)):
            with pytest.raises(Busy, match="no worker free") as raised:
                await pool.answer(Message({"n": 2}), clock.now + deadline_s, finish_s=finish_s)
            assert raised.value.status == 503
        worker.reply()
        assert await value(measured) == 0 and await value(first) == -1
        assert worker.batches == [[8], [0], [1]] and worker.stops == 0
        (alone,) = await ask(pool, 3, deadline_s=10)
        assert worker.batches[-1] == [3], "an idle worker always starts one request, whatever was measured"
        worker.reply()
        assert await value(alone) == -3

    play(script, Scripted())


def test_a_batch_is_limited_by_the_earliest_deadline_of_any_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(pool_module, "time", SimpleNamespace(monotonic=lambda: now))

    async def script(pool: WorkerPool, worker: Scripted) -> None:
        nonlocal now

        def hand_in(number: int, seconds: float, group: str) -> asyncio.Task[Message]:
            return asyncio.ensure_future(pool.answer(Message({"n": number}), now + seconds, group=group))

        for number in range(2):  # those after the first take one second, with an upper bound of about two and a half
            inside = [hand_in(number, 20, "desk")]
            await asyncio.sleep(0)
            now += 1
            worker.reply()
        inside += [hand_in(2, 20, "desk"), *(hand_in(number, 10, "desk") for number in (3, 4, 5, 6, 7))]
        inside.append(hand_in(8, 1000, "treasury"))
        await asyncio.sleep(0)
        now += 1
        worker.reply()
        assert worker.batches == [[0], [1], [2], [8, 3, 4]], "a batch of all six would be too late for 3"
        worker.reply()
        worker.reply()
        assert await asyncio.gather(*map(value, inside)) == [-1, -2, -3, -4, -5, -6, -7, -8]

    play(script, Scripted(most=8))


def test_the_first_batch_of_a_worker_is_not_measured(clock: SimpleNamespace) -> None:
    async def script(pool: WorkerPool, worker: Scripted) -> None:
        for _ in range(2):
            (first,) = await ask(pool, 0)
            clock.now += 10  # slow, as if it imported modules
            waiting = await ask(pool, 1, 2, deadline_s=20)
            worker.reply()
            worker.reply()
            assert [await value(task) for task in (first, *waiting)] == [0, -1, -2]
            worker.end()
            worker.ready()

    play(script, Scripted())


def test_a_cancelled_request_is_dropped_or_stopped_after_the_load_time_of_a_worker(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def script(pool: WorkerPool, worker: Scripted) -> None:
        computed, waiting = await ask(pool, 1, 2)
        waiting.cancel()
        computed.cancel()
        await asyncio.wait({computed, waiting})
        await asyncio.sleep(0.01)
        assert worker.stops == 1
        worker.end("SIGKILL")
        worker.ready()
        assert worker.batches == [[1]]

    play(script, Scripted(load_s=0.001))
    assert "a client that is gone" in caplog.text and "deadline" not in caplog.text


def test_refusals_and_failures_reach_only_their_own_request() -> None:
    async def script(pool: WorkerPool, worker: Scripted) -> None:
        tasks = await ask(pool, 0, 1, 2)
        worker.reply()
        worker.reply(refusal_reply(OutOfMemory()), Message({"fault": "ArithmeticError", "number": "ab"}))
        with pytest.raises(InvalidInputError) as raised:
            await tasks[1]
        assert raised.value.status == 413
        with pytest.raises(WorkerFault, match=r"ArithmeticError \(error ab\)"):
            await tasks[2]

    play(script, Scripted())


def test_too_few_replies_are_an_error() -> None:
    async def script(pool: WorkerPool, worker: Scripted) -> None:
        tasks = await ask(pool, 0, 1, 2)
        worker.reply()
        worker.reply(Message({"n": 5}))
        for task in tasks[1:]:
            with pytest.raises(WorkerFault, match="wrong number"):
                await task

    play(script, Scripted())


def test_if_no_worker_can_load_the_answer_is_the_reason() -> None:
    async def script(pool: WorkerPool, starting: asyncio.Task[None], *workers: Scripted) -> None:
        workers[0].end("the weights do not fit", refused=True)
        assert not starting.done()
        workers[1].end("SIGABRT")
        with pytest.raises(InvalidInputError, match=r"ended while loading \(SIGABRT\)") as raised:
            await starting
        assert raised.value.status == 503 and all(worker.closed for worker in workers)

    play(script, Scripted(), Scripted(), ready=False)


def test_a_worker_that_cannot_be_replaced_is_retried_later(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(pool: WorkerPool, worker: Scripted) -> None:
        worker.end()
        (waiting,) = await ask(pool, 1)
        worker.end("no GPU", refused=True)
        with pytest.raises(InvalidInputError, match="no GPU"):
            await waiting
        (refused_future,) = await ask(pool, 2)
        with pytest.raises(InvalidInputError, match="no GPU") as error:
            await refused_future
        assert error.value.status == 503 and worker.starts == 2 and not pool.usable
        monkeypatch.setattr("shared.serve.runtime.pool._RETRY_LOADING_S", 0)
        (answered,) = await ask(pool, 3)
        assert worker.starts == 3
        worker.ready()
        worker.reply()
        assert await value(answered) == -3 and pool.states()[0]["failure"] is None

    play(script, Scripted())


def test_requests_are_told_when_to_try_again_if_a_new_worker_ends_while_loading() -> None:
    async def script(pool: WorkerPool, worker: Scripted) -> None:
        worker.end()
        (waiting,) = await ask(pool, 1)
        worker.end("SIGKILL")
        (later,) = await ask(pool, 2)
        for refused in (waiting, later):
            with pytest.raises(
                Busy, match=r"while loading \(SIGKILL\); try again in 5 seconds.*out of memory"
            ) as raised:
                await refused
            assert (raised.value.status, raised.value.retry_after_s) == (503, 5)
        assert pool.states()[0]["failure"] == "its worker ended while loading (SIGKILL)"

    play(script, Scripted())


def test_closing_refuses_all_requests_and_ends_the_workers() -> None:
    async def script(pool: WorkerPool, worker: Scripted) -> None:
        tasks = await ask(pool, 1, 2)
        pool.close()
        for task in (*tasks, *await ask(pool, 3)):
            with pytest.raises(Busy):
                await task
        assert worker.closed and worker.starts == 1

    play(script, Scripted())
