"""More requests than can be answered in time."""

from __future__ import annotations

import asyncio
import random
import selectors
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from http.client import HTTPResponse
from typing import Any

import httpx2 as httpx
import pytest

from shared.app import App
from shared.errors import InvalidInputError
from shared.serve.app import create_app
from shared.serve.metrics import Metrics
from shared.serve.runtime import limits, pool
from shared.serve.runtime.limits import Busy, DeadlinePassed, RequestLimit, within_deadline
from shared.serve.runtime.pool import WorkerPool
from shared.serve.runtime.worker import WorkerListener
from shared.serve.settings import Settings
from shared.serve.worker.messages import Message
from tests.conftest import serving
from tests.shared.serve.echo import Echo
from tests.shared.serve.echo import until as wait_until


class Clock:
    """A clock that only advances when it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(limits, "time", found)
    return found


def answer(limit: RequestLimit, clock: Clock, number: int, seconds: float) -> None:
    for _ in range(number):
        with limit.admit(), limit.computing():
            clock.now += seconds


def enter(stack: ExitStack, limit: RequestLimit, number: int, group: str | None = None) -> None:
    """Admits and computes ``number`` requests of a group until the stack is closed."""
    for _ in range(number):
        stack.enter_context(limit.admit(group))
        stack.enter_context(limit.computing(group))


def test_only_requests_that_can_be_answered_before_the_deadline_are_admitted(clock: Clock) -> None:
    limit = RequestLimit("it", 100, deadline_s=11)
    answer(limit, clock, 4, 2)
    with ExitStack() as stack:
        enter(stack, limit, 5)
        with pytest.raises(Busy, match="more requests than it can answer before the deadline") as busy:
            limit.check()
        assert busy.value.retry_after_s == 1 and busy.value.status == 503
    limit.check()


def test_requests_of_one_group_delay_another_only_by_its_turns(clock: Clock) -> None:
    limit = RequestLimit("it", 100, deadline_s=11)
    answer(limit, clock, 4, 2)
    with ExitStack() as stack:
        enter(stack, limit, 5, "desk")
        with pytest.raises(Busy, match="more requests of the group desk than it can answer before the deadline"):
            limit.check("desk")
        for _ in range(2):  # answered in 4 and 8 seconds, and the next in 12
            limit.check("treasury")
            enter(stack, limit, 1, "treasury")
        with pytest.raises(Busy, match="of the group treasury"):
            limit.check("treasury")
        limit.check()


def test_late_answers_of_one_group_do_not_refuse_requests_of_others(clock: Clock) -> None:
    limit = RequestLimit("it", 100, deadline_s=11)
    answer(limit, clock, 4, 1)
    with ExitStack() as stack:
        enter(stack, limit, 3, "desk")
        for _ in range(8):  # they alternate with those of the desk
            with limit.admit("treasury"), limit.computing("treasury"):
                clock.now += 1
    with limit.admit("desk"), limit.computing("desk"):
        with pytest.raises(Busy):
            limit.check("desk")
        limit.check("treasury")


def test_a_group_with_late_answers_is_admitted_again_while_others_are_busy(
    clock: Clock,
) -> None:
    limit = RequestLimit("it", 100, deadline_s=30)
    answer(limit, clock, 16, 1)
    with limit.admit("desk"), limit.computing("desk"):
        clock.now += 12  # as if a worker was replaced
    for _ in range(100):
        with limit.admit("treasury"), limit.computing("treasury"):
            clock.now += 1
    with limit.admit("treasury"), limit.computing("treasury"):
        for _ in range(30):
            with limit.admit("desk"), limit.computing("desk"):
                clock.now += 1
                limit.check("treasury")
        with limit.admit("desk"), limit.computing("desk"):
            limit.check("desk")


def test_answers_of_one_batch_count_as_one_measurement(clock: Clock) -> None:
    limit = RequestLimit("it", 100, deadline_s=10)
    for _ in range(4):
        with ExitStack() as stack:
            enter(stack, limit, 4)
            clock.now += 2
    with ExitStack() as stack:  # half a second each, and up to two seconds for their batch
        enter(stack, limit, 10)
        limit.check()
        with pytest.raises(Busy):
            enter(stack, limit, 10)


def test_slow_uploads_are_overtaken_and_one_request_is_always_admitted(clock: Clock) -> None:
    limit = RequestLimit("it", 100, deadline_s=10)
    answer(limit, clock, 4, 9)
    with limit.admit():
        with pytest.raises(Busy):
            limit.check()
        clock.now += 3
        limit.check()
    with pytest.raises(DeadlinePassed), limit.admit(), limit.computing():
        raise DeadlinePassed("it")
    limit.check()


def test_answers_later_than_predicted_raise_the_prediction(clock: Clock) -> None:
    limit = RequestLimit("it", 100, deadline_s=20)
    answer(limit, clock, 4, 1)
    for _ in range(8):  # still one answer per second, but in batches of four
        with ExitStack() as stack:
            enter(stack, limit, 4)
            clock.now += 4
    with ExitStack() as stack, pytest.raises(Busy, match="before the deadline"):
        enter(stack, limit, 18)  # by the measured times alone, nineteen would fit


class SkippingTime(selectors.DefaultSelector):
    """Makes an event loop skip idle time."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "the event loop has no events left"
        self._clock.now += max(0.0, timeout)
        return super().select(0)


class Timed:
    """A worker that takes about a tenth of a second for each request, and five seconds to be replaced."""

    max_requests, load_s = 8, 5.0
    programs: dict[str, str] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.random, self.stops = random.Random(0), 0

    def start(self, listener: WorkerListener) -> None:
        self.listener, self.generation = listener, self.stops
        self._later(0.0 if not self.stops else self.load_s, lambda: listener.on_ready(self))

    def begin(self, batch: Sequence[Message]) -> bool:
        seconds = sum(self.random.uniform(0.05, 0.15) for _ in batch)
        each = {"inferences": 1, "executions": 1, "infer_s": seconds}
        self._later(seconds, lambda: self.listener.on_replies(self, [Message(each)] * len(batch)))
        return True

    def stop(self) -> bool:
        self.stops += 1
        self._later(0, lambda: self.listener.on_end(self, "SIGKILL", refused=False), always=True)
        return True

    def close(self) -> None:
        self.stops += 1

    def describe(self) -> dict[str, int | None]:
        return {"pid": 1, "memory_bytes": 2}

    def _later(self, seconds: float, what: Callable[[], None], always: bool = False) -> None:
        life = self.stops
        asyncio.get_running_loop().call_later(seconds, lambda: what() if always or life == self.stops else None)


async def offer(rate: float, seconds: float, clock: Clock) -> tuple[Counter[int], float, Timed]:
    """Returns the number of answers by status, the longest wait, and the worker. Storing an answer takes 0.2 s."""
    worker, limit = Timed(), RequestLimit("it", 40, deadline_s=2)
    workers = WorkerPool("it", [worker], capacity=40, metrics=Metrics().of("it", "1"), max_batch_s=0.25)
    await workers.start()
    found: Counter[int] = Counter()
    longest = 0.0

    async def ask() -> None:
        nonlocal longest
        began = clock.now
        try:
            with limit.admit(), limit.computing():
                await workers.answer(Message({}), began + 2, finish_s=0.25)
                async with within_deadline(began + 2, lambda: DeadlinePassed("it")):
                    await asyncio.sleep(0.2)
            found[200] += 1
        except InvalidInputError as refusal:
            found[refusal.status] += 1
        longest = max(longest, clock.now - began)

    requests = []
    for _ in range(round(rate * seconds)):
        requests.append(asyncio.ensure_future(ask()))
        await asyncio.sleep(1 / rate)
    await asyncio.gather(*requests)
    return found, longest, worker


def test_at_three_times_the_capacity_every_request_is_answered_or_refused_in_time(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "time", clock)
    seconds = 60.0
    for rate in (8.0, 30.0, 200.0):
        loop = asyncio.SelectorEventLoop(SkippingTime(clock))
        loop.time = clock.monotonic  # type: ignore[method-assign]
        try:
            found, longest, worker = loop.run_until_complete(offer(rate, seconds, clock))
        finally:
            loop.close()
        assert set(found) <= {200, 503} and longest <= 2 and worker.stops == 0, (rate, found)
        assert found[200] >= 0.9 * min(rate, 10) * seconds, (rate, found)


def test_a_full_server_refuses_before_the_body_arrives(settings: Settings, echo_app: App, echo: Echo) -> None:
    # Without a minimum rate no upload counts as stalled, however long refused clients wait for their answer.
    changed = settings.model_copy(update={"hosts": None, "queue_length": 1, "max_batch": 1, "min_upload_rate": 0.0})
    echo.gate.clear()
    with serving(create_app(changed, {"echo": echo_app})) as address, ExitStack() as stack:
        place = address.removeprefix("http://")
        sockets = [_begin(stack, place, "Connection: keep-alive") for _ in range(2)]
        wait_until(lambda: httpx.post(f"{address}/api/echo/predict", timeout=60).status_code == 503)
        for option in ("Connection: close", "Connection: keep-alive"):
            response = HTTPResponse(_begin(stack, place, option))
            response.begin()
            assert response.status == 503 and response.headers["Retry-After"] == "5"
            assert b"as many requests as it can hold" in response.read(), (
                "the complete answer, although no body was sent"
            )
            assert response.headers["X-Content-Type-Options"] == "nosniff"
        for connection in sockets:
            connection.close()


def _begin(stack: ExitStack, place: str, option: str) -> socket.socket:
    host, port = place.split(":")
    found = stack.enter_context(socket.create_connection((host, int(port))))
    found.settimeout(5)  # below the ten seconds for which a refused body is drained

    head = f"POST /api/echo/predict HTTP/1.1\r\nHost: {place}\r\nContent-Length: 100000\r\n{option}\r\n"
    found.sendall(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n--x".encode())
    return found


@pytest.fixture(autouse=True)
def _open_gate(echo: Echo) -> Iterator[None]:
    yield
    echo.gate.set()
