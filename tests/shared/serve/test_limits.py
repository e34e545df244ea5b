"""Admission of requests, and clients that disconnect; over raw sockets, so that clients can misbehave."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.client import HTTPResponse
from typing import Any

import httpx2 as httpx
import pytest

from shared.app import App
from shared.serve.app import create_app
from shared.serve.runtime.limits import Busy, MemoryLimit
from shared.serve.runtime.places import Place
from shared.serve.settings import Settings
from tests.conftest import serving
from tests.shared.serve.echo import Echo, csv, until

FORM = '--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n{number}\r\n--x--\r\n'
INFER = "/v2/models/echo/infer"


class Live:
    """A server on a port, and connections to it that stay open until the end."""

    def __init__(self, address: str, stack: ExitStack) -> None:
        self.address, self._stack = address, stack

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.address + path, timeout=60)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return httpx.post(self.address + path, timeout=60, **options)

    def send(self, path: str, body: bytes, length: int, *headers: str) -> socket.socket:
        """Sends a request whose body should have ``length`` bytes, and does not wait."""
        host = self.address.removeprefix("http://")
        found = self._stack.enter_context(socket.create_connection(tuple(host.split(":"))))  # type: ignore[arg-type]
        found.settimeout(20)
        head = [f"POST {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {length}", *headers]
        found.sendall("\r\n".join([*head, "", ""]).encode() + body)
        return found

    def send_form(self, number: int) -> socket.socket:
        body = FORM.format(number=number).encode()
        return self.send("/api/echo/predict", body, len(body), "Content-Type: multipart/form-data; boundary=x")

    def pending(self) -> float:
        text = self.get("/metrics").text
        lines = [line for line in text.splitlines() if line.startswith("nv_inference_pending") and '"2"' in line]
        return float(lines[0].rsplit(" ", 1)[1]) if lines else 0.0


def read(sent: socket.socket) -> HTTPResponse:
    response = HTTPResponse(sent)
    response.begin()
    return response


@pytest.fixture
def live(settings: Settings, echo_app: App) -> Iterator[Callable[..., Live]]:
    with ExitStack() as stack:

        def make(**changes: Any) -> Live:
            changed = settings.model_copy(update={"hosts": None} | changes)
            return Live(stack.enter_context(serving(create_app(changed, {"echo": echo_app}))), stack)

        yield make


@pytest.mark.parametrize("path", ["/api/echo/predict", INFER])
def test_a_request_is_admitted_before_its_body_is_read(live: Callable[..., Live], path: str) -> None:
    server = live(queue_length=1, max_batch=1, min_upload_rate=0)
    form = "Content-Type: multipart/form-data; boundary=x"
    open_requests = [server.send(path, b"--x", 1000, form) for _ in range(2)]
    until(lambda: server.post(path, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 503)
    refused_connection = server.send(path, b"", 1_000_000_000, form)
    response = read(refused_connection)
    assert response.status == 503 and response.headers["Retry-After"] == "5"
    for connection in open_requests:
        connection.close()
    until(lambda: server.post(path, content=b"{}", headers={"Content-Type": "text/plain"}).status_code in (400, 415))


def test_tensor_bodies_share_a_memory_limit(live: Callable[..., Live]) -> None:
    server = live(min_upload_rate=0)
    headers = {"Inference-Header-Content-Length": "2"}
    open_requests = [server.send(INFER, b"", 100_000, "Inference-Header-Content-Length: 2") for _ in range(4)]
    until(lambda: server.post(INFER, content=b"{}", headers=headers).status_code == 503)
    open_requests[0].close()
    until(lambda: server.post(INFER, content=b"{}", headers=headers).status_code == 400)


def test_reserved_memory_is_released() -> None:
    memory = MemoryLimit("it", 10)
    with memory.reserve(Place()) as reserve, memory.reserve(Place()) as other_reserve:
        reserve(4)
        other_reserve(6)
        with pytest.raises(Busy):
            reserve(1)
    with memory.reserve(Place()) as reserve:
        reserve(10)


def test_one_group_cannot_reserve_all_memory() -> None:
    memory = MemoryLimit("it", 10, max_bytes_of_group=8)
    with (
        memory.reserve(Place("desk")) as desk,
        memory.reserve(Place("desk")) as more_desk,
        memory.reserve(Place()) as no_group,
    ):
        desk(4)
        more_desk(4)
        with pytest.raises(Busy):
            more_desk(1)
        no_group(2)
        with pytest.raises(Busy):
            no_group(1)


class Stalled:
    """An upload that receives no data."""

    given_up = False

    def give_up_if_stalled(self) -> bool:
        self.given_up = True
        return True


def test_a_group_at_its_memory_limit_does_not_end_stalled_uploads_of_others() -> None:
    memory, stalled = MemoryLimit("it", 10, max_bytes_of_group=8), Stalled()
    treasury, desk = Place("treasury"), Place("desk")
    with memory.reserve(treasury) as first, memory.reserve(desk) as second, memory.reserve(Place("desk")) as third:
        first(3)
        treasury.upload = stalled
        second(6)
        with pytest.raises(Busy):
            third(3)
        assert not stalled.given_up, "that would make no room for the desk"
        desk.upload = Stalled()
        third(3)
        assert desk.upload.given_up and not stalled.given_up
        third(5)
        assert stalled.given_up


def test_a_stalled_upload_is_refused(live: Callable[..., Live]) -> None:
    server = live(deadline_s=0.2)
    open_request = server.send("/api/echo/predict", b"--x", 1000, "Content-Type: multipart/form-data; boundary=x")
    response = read(open_request)
    assert response.status == 408 and b"no more of the request arrived" in response.read()


def test_a_client_that_closes_the_connection_still_gets_the_refusal(live: Callable[..., Live]) -> None:
    server = live()
    size = 20_000_000
    sent = server.send(INFER, b"", size, "Connection: close")
    sent.sendall(b" " * size)
    assert read(sent).status == 413


def test_the_request_of_a_disconnected_client_is_neither_computed_nor_stored(
    live: Callable[..., Live], echo: Echo
) -> None:
    server = live(max_batch=1)
    echo.gate.clear()
    computed = server.send_form(1)
    until(echo.entered.is_set)
    waiting = [server.send_form(number) for number in (2, 3)]
    until(lambda: server.pending() == 2)
    for connection in (computed, *waiting):
        connection.close()
    failures = 'nv_inference_request_failure{model="echo",reason="CANCELED",version="2"} 3.0'
    until(lambda: failures in server.get("/metrics").text)
    echo.gate.set()
    assert server.post("/api/echo/predict", files=[csv(4)]).json()["result"]["doubled"] == [8]
    assert echo.batches == [1, 1], "the request that was computing, and the last"
    assert len(server.get("/api/echo/cases").json()["cases"]) == 1
