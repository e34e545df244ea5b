"""Clients that keep a connection or a place and send almost nothing."""

from __future__ import annotations

import json
import logging
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from http.client import HTTPResponse
from typing import Any

import pytest

from shared.app import App
from shared.serve.app import create_app
from shared.serve.runtime import connection, protocol
from shared.serve.runtime.protocol import header_deadline_protocol
from shared.serve.settings import Settings
from tests.conftest import serving
from tests.shared.serve.echo import until

FORM = "Content-Type: multipart/form-data; boundary=x"
PREDICT, INFER = "/api/echo/predict", "/v2/models/echo/infer"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


def start(stack: ExitStack, settings: Settings, app: App, **changes: object) -> tuple[str, int]:
    changed = settings.model_copy(update={"hosts": None} | changes)
    protocol = header_deadline_protocol(changed.header_s)
    address = stack.enter_context(serving(create_app(changed, {"echo": app}), http=protocol))
    host, port = address.removeprefix("http://").split(":")
    return host, int(port)


def connect(stack: ExitStack, address: tuple[str, int], first: bytes) -> socket.socket:
    found = stack.enter_context(socket.create_connection(address))
    found.settimeout(60)
    found.sendall(first)
    return found


def trickle(sent: socket.socket, max_bytes: int) -> int:
    """Sends a byte every 20 ms until there is an answer; returns the number of bytes sent."""
    for number in range(max_bytes):
        if select.select([sent], [], [], 0.02)[0]:
            return number
        sent.sendall(b"x")
    return max_bytes


def read(sent: socket.socket) -> tuple[int, str]:
    response = HTTPResponse(sent)
    response.begin()
    return response.status, response.read().decode()


def head(path: str, length: int) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n{FORM}\r\n\r\n".encode()


@pytest.mark.parametrize("path", [PREDICT, INFER])
def test_a_trickling_upload_is_refused(
    stack: ExitStack, settings: Settings, echo_app: App, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(connection, "RATE_WINDOW_S", 0.3)
    sent = connect(stack, start(stack, settings, echo_app, min_upload_rate=1000), head(path, 90_000))
    assert trickle(sent, 300) < 300
    status, text = read(sent)
    assert status == 408 and "less than 1000 bytes per second (TRIVIUM_MIN_UPLOAD_RATE)" in text


def test_an_upload_that_starts_fast_cannot_trickle_the_rest(
    stack: ExitStack, settings: Settings, echo_app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "RATE_WINDOW_S", 0.3)
    sent = connect(stack, start(stack, settings, echo_app, min_upload_rate=1000), head(INFER, 90_000))
    sent.sendall(b" " * 80_000)
    assert trickle(sent, 300) < 300
    assert read(sent)[0] == 408


@pytest.mark.parametrize("path", [PREDICT, INFER])
def test_stalled_uploads_do_not_block_others(
    stack: ExitStack, settings: Settings, echo_app: App, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(connection, "STALLED_S", 0.2)
    address = start(stack, settings, echo_app, queue_length=3, max_batch=1, min_upload_rate=1000)
    slow = [connect(stack, address, head(path, 90_000)) for _ in range(4)]
    began, small = time.monotonic(), head(path, 2) + b"{}"
    assert until_status(stack, address, small, (400, 415)) and time.monotonic() - began < 30
    (given_up,) = select.select(slow, [], [], 30)[0]
    assert read(given_up) == (408, given_up_for_another(path))
    assert not select.select([connection for connection in slow if connection is not given_up], [], [], 0)[0], (
        "the other uploads continue"
    )


def test_memory_of_stalled_uploads_is_given_to_others(
    stack: ExitStack, settings: Settings, echo_app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "STALLED_S", 0.2)
    address = start(stack, settings, echo_app, min_upload_rate=1000)
    stalled = head(INFER, settings.max_tensor_bytes).replace(
        b"\r\n\r\n", b"\r\nInference-Header-Content-Length: 2\r\n\r\n"
    )
    slow = [connect(stack, address, stalled) for _ in range(4)]
    assert until_status(stack, address, head(INFER, 2) + b"{}", (400,))
    assert len(select.select(slow, [], [], 30)[0]) == 1


def until_status(stack: ExitStack, address: tuple[str, int], request: bytes, statuses: tuple[int, ...]) -> bool:
    """Sends requests until the status is not 503; returns whether the first was 503 and the last is in ``wanted``."""
    found = [read(connect(stack, address, request))[0]]
    while found[-1] == 503 and len(found) < 500:
        time.sleep(0.01)
        found.append(read(connect(stack, address, request))[0])
    return found[0] == 503 and found[-1] in statuses


def given_up_for_another(path: str) -> str:
    words = "the request arrived slowly while another request needed its place; send it again"
    return f'{{"{"error" if path == INFER else "detail"}":"{words}"}}'


def test_the_total_time_of_an_upload_is_limited(stack: ExitStack, settings: Settings, echo_app: App) -> None:
    sent = connect(stack, start(stack, settings, echo_app, upload_s=0.5, min_upload_rate=0), head(PREDICT, 90_000))
    assert trickle(sent, 300) < 300
    status, text = read(sent)
    assert status == 408 and "longer than 0.5 seconds to arrive (TRIVIUM_UPLOAD_S)" in text


def test_an_upload_that_is_fast_enough_may_pause(
    stack: ExitStack, settings: Settings, echo_app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "RATE_WINDOW_S", 0.2)
    disposition = 'Content-Disposition: form-data; name="files"; filename="a"'
    body = f"--x\r\n{disposition}\r\n\r\n{'1,' * 20_000}".encode(), b"2\r\n--x--\r\n"
    address = start(stack, settings, echo_app, min_upload_rate=10_000)
    sent = connect(stack, address, head(PREDICT, sum(map(len, body))) + body[0])
    assert select.select([sent], [], [], 0.3)[0] == [], "no answer for longer than a window"
    sent.sendall(body[1])
    assert read(sent)[0] == 200


@pytest.mark.parametrize("first", [b"", b"G", b"GET / HTTP/1.1\r\nHost: a\r\nX-"])
def test_a_connection_without_a_complete_header_is_closed(
    stack: ExitStack, settings: Settings, echo_app: App, first: bytes
) -> None:
    sent = connect(stack, start(stack, settings, echo_app, header_s=0.3), first)
    began = time.monotonic()
    assert trickle(sent, 300 if len(first) > 1 else 0) < 300
    assert sent.recv(1) == b"" and time.monotonic() - began < 9


def test_a_header_that_is_too_large_is_refused(stack: ExitStack, settings: Settings, echo_app: App) -> None:
    sent = connect(stack, start(stack, settings, echo_app), b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\nX-A: ")
    with suppress(OSError):
        for _ in range(200):
            sent.sendall(b"x" * 1000)
    assert read(sent)[0] == 431


@pytest.mark.parametrize(
    ("sent", "status"), [(b"GARBAGE\r\n\r\n", 400), (b"GET / HTTP/1.1\r\nX-A: " + b"x" * 70_000, 431)]
)
def test_invalid_http_is_answered_and_logged_with_an_identifier(
    stack: ExitStack, settings: Settings, echo_app: App, caplog: pytest.LogCaptureFixture, sent: bytes, status: int
) -> None:
    with caplog.at_level(logging.INFO, "trivium.access"):
        response = HTTPResponse(connect(stack, start(stack, settings, echo_app), sent))
        response.begin()
        assert json.loads(response.read())["detail"]

        def lines() -> list[dict[str, Any]]:
            return [json.loads(record.message) for record in caplog.records if record.name == "trivium.access"]

        until(lambda: len(lines()) == 1)  # logged once it is answered
    (line,) = lines()
    assert (line["status"], line["request"]) == (response.status, response.getheader("X-Request-Id"))
    assert response.status == status and len(line["request"]) == 16


def test_a_connection_with_an_incomplete_second_header_is_closed(
    stack: ExitStack, settings: Settings, echo_app: App
) -> None:
    sent = connect(stack, start(stack, settings, echo_app, header_s=0.3), b"")
    for _ in range(2):
        sent.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n")
        assert read(sent) == (200, '{"live":true}')
    sent.sendall(b"GET / HTTP/1.1\r\nX-")
    assert trickle(sent, 300) < 300 and sent.recv(1) == b""


def test_the_header_timeout_does_not_limit_computing(stack: ExitStack, settings: Settings, echo_app: App) -> None:
    body = b"sample=three"
    kind = b"Content-Type: application/x-www-form-urlencoded"
    request = b"POST %s HTTP/1.1\r\nHost: a\r\n%s\r\nContent-Length: %d\r\n\r\n%s"
    whole = request % (PREDICT.encode(), kind, len(body), body)
    sent = connect(stack, start(stack, settings, echo_app, header_s=0.1), whole)
    assert read(sent)[0] == 200


def is_closed(sent: socket.socket, piece: bytes, seconds: float = 10) -> bool:
    """Whether the connection is closed while a piece is sent every 20 ms. Reads and discards what it receives."""
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            if select.select([sent], [], [], 0.02)[0] and not sent.recv(1 << 16):
                return True
            sent.sendall(piece)
    except OSError:
        return True
    return False


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_connection_with_an_endless_body_after_the_answer_is_closed(
    stack: ExitStack, settings: Settings, echo_app: App, monkeypatch: pytest.MonkeyPatch, chunked: bool, method: str
) -> None:
    monkeypatch.setattr(protocol, "UNREAD_BODY_PERIOD_S", 0.3)
    size = "Transfer-Encoding: chunked" if chunked else "Content-Length: 2000000000"
    head = f"{method} {PREDICT} HTTP/1.1\r\nHost: a\r\n{size}\r\n\r\n".encode()
    sent = connect(stack, start(stack, settings, echo_app, require_key=True), head)
    # Enough at first to count as progress.
    sent.sendall(b"10000\r\n" + b"a" * 65536 + b"\r\n" if chunked else b"a" * 3_000_000)
    assert is_closed(sent, b"1\r\na\r\n" if chunked else b"a")
