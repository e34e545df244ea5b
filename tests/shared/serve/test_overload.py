"""More requests than can be answered in time."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPResponse

import httpx2 as httpx
import pytest

from shared.app import App
from shared.serve.app import create_app
from shared.serve.runtime import limits
from shared.serve.runtime.limits import Busy, DeadlinePassed, RequestLimit
from shared.serve.settings import Settings
from tests.conftest import serving
from tests.shared.serve.echo import Echo, until


class Clock:
    """A clock that stands until it is moved."""

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


def test_no_more_are_admitted_than_can_be_answered_before_the_deadline(clock: Clock) -> None:
    limit = RequestLimit("it", 100, deadline_s=10)
    answer(limit, clock, 4, 2)
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(limit.admit())
            stack.enter_context(limit.computing())
        with pytest.raises(Busy, match="more requests than it can answer before the deadline") as busy:
            limit.check()
        assert busy.value.retry_after_s == 2 and busy.value.status == 503
    limit.check()


def test_answers_that_come_together_count_as_one_time(clock: Clock) -> None:
    limit = RequestLimit("it", 100, deadline_s=10)
    for _ in range(4):
        with ExitStack() as stack:
            for _ in range(4):
                stack.enter_context(limit.admit())
                stack.enter_context(limit.computing())
            clock.now += 2
    with ExitStack() as stack:  # half a second each
        for _ in range(20):
            stack.enter_context(limit.admit())
            stack.enter_context(limit.computing())
        with pytest.raises(Busy):
            limit.check()


def test_what_is_slow_in_coming_is_overtaken_and_one_is_always_admitted(clock: Clock) -> None:
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


def test_a_full_server_refuses_before_a_body_comes(settings: Settings, echo_app: App, echo: Echo) -> None:
    changed = settings.model_copy(update={"hosts": None, "queue_length": 1, "max_batch": 1})
    echo.gate.clear()
    with serving(create_app(changed, {"echo": echo_app})) as address, ExitStack() as stack:
        place = address.removeprefix("http://")
        sockets = [_begin(stack, place, "Connection: keep-alive") for _ in range(2)]
        until(lambda: httpx.post(f"{address}/api/echo/predict", timeout=20).status_code == 503)
        for option in ("Connection: close", "Connection: keep-alive"):
            refused = HTTPResponse(_begin(stack, place, option))
            refused.begin()
            assert refused.status == 503 and refused.headers["Retry-After"] == "5"
            assert b"as many requests as it can hold" in refused.read(), "whole, though nothing of the body was sent"
            assert refused.headers["X-Content-Type-Options"] == "nosniff"
        for one in sockets:
            one.close()


def _begin(stack: ExitStack, place: str, option: str) -> socket.socket:
    host, port = place.split(":")
    found = stack.enter_context(socket.create_connection((host, int(port))))
    found.settimeout(5)  # below the ten seconds for which the rest of a refused body is awaited

    head = f"POST /api/echo/predict HTTP/1.1\r\nHost: {place}\r\nContent-Length: 100000\r\n{option}\r\n"
    found.sendall(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n--x".encode())
    return found


@pytest.fixture(autouse=True)
def _open_gate(echo: Echo) -> Iterator[None]:
    yield
    echo.gate.set()
