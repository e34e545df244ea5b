"""Many idle connections to a server with a low limit of open files."""

from __future__ import annotations

import re
import resource
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from fastapi.testclient import TestClient

from shared.serve.oip import grpc_service
from tests.servers import make_certificate

_SERVER = """
import sys
from pathlib import Path
from shared.serve.server import run
from shared.serve.settings import Settings
run(Settings(store=Path(sys.argv[1]), port=0, warm=False, header_s=60))
"""
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""The start of an HTTP/2 connection: the preface, and empty settings."""
_LIMITS = """
import resource, sys
from shared.serve.server import raise_open_file_limit
print(raise_open_file_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def limited(program: str, soft: int, hard: int, *words: str) -> subprocess.Popen[str]:
    """Runs the program in a process with a limit of open files."""
    begin = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
    command = [sys.executable, "-c", begin + program, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


class Server(NamedTuple):
    """The ports of a server with a limit of 256 open files."""

    http: int
    grpc: int


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for the module, because starting one takes longer than each test. It never runs out of open files."""
    program = _SERVER.replace("warm=False", "grpc_port=0, warm=False")
    with limited(program, 256, 256, str(tmp_path_factory.mktemp("store"))) as process, ExitStack() as stack:
        stack.callback(process.kill)
        grpc = printed(process, r"gRPC listens on port (\d+)")
        yield Server(http=int(address_of(process).rpartition(":")[2]), grpc=int(grpc))
        process.terminate()
        assert process.stdout is not None
        assert "out of system resource" not in process.stdout.read()


def assert_answers(server: Server) -> None:
    for path in ("/v2/health/live", "/api/finance/cases"):
        with urllib.request.urlopen(f"http://127.0.0.1:{server.http}{path}", timeout=60) as response:
            assert response.status == 200


def address_of(process: subprocess.Popen[str]) -> str:
    """The address that the process prints."""
    return printed(process, r"open (https?://127\.0\.0\.1:\d+)")


def printed(process: subprocess.Popen[str], pattern: str) -> str:
    """Reads what the process prints up to the first match; returns its group."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(pattern, line):
            return found[1]
    pytest.fail("it ended")


def test_idle_connections_are_closed_in_favour_of_active_ones(server: Server) -> None:
    with ExitStack() as stack:
        for _ in range(600):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.http), timeout=60))
        assert_answers(server)


def test_a_connection_with_a_request_is_kept_before_idle_ones(server: Server) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(socket.create_connection(("127.0.0.1", server.http), timeout=60))
        head = b"Host: localhost\r\nExpect: 100-continue\r\nContent-Type: multipart/form-data; boundary=x"
        first.sendall(b"POST /api/finance/predict HTTP/1.1\r\n" + head + b"\r\nContent-Length: 5\r\n\r\n")
        assert first.recv(1000).startswith(b"HTTP/1.1 100"), "the server waits for the body"
        for _ in range(400):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.http), timeout=60))
        first.sendall(b"12345")
        assert first.recv(1000).startswith(b"HTTP/1.1 400")


def test_connections_with_an_unfinished_tls_handshake_are_closed(tmp_path: Path) -> None:
    chain, key = tmp_path / "server.crt", tmp_path / "server.key"
    make_certificate(chain, key, "localhost", "-addext", "subjectAltName=DNS:localhost")
    program = _SERVER.replace("header_s=60", "tls_cert=sys.argv[2], tls_key=sys.argv[3]")
    with limited(program, 256, 256, str(tmp_path / "store"), str(chain), str(key)) as process, ExitStack() as stack:
        port = address_of(process).rpartition(":")[2]
        for _ in range(600):
            stack.enter_context(socket.create_connection(("127.0.0.1", int(port)), timeout=60))
        trusted = ssl.create_default_context(cafile=chain)
        url = f"https://localhost:{port}/v2/health/live"
        with urllib.request.urlopen(url, timeout=60, context=trusted) as response:
            assert response.status == 200
        process.terminate()
        assert process.stdout is not None and "out of system resource" not in process.stdout.read()


def test_a_silent_grpc_connection_is_closed(serve: Callable[..., TestClient]) -> None:
    client = serve(grpc_port=0, header_s=0.3)
    port = client.app.state.grpc_port  # type: ignore[attr-defined]
    with socket.create_connection(("127.0.0.1", port), timeout=60) as silent:
        while silent.recv(1000):
            pass


def test_grpc_connections_do_not_use_all_file_descriptors(server: Server) -> None:
    with ExitStack() as stack:
        for _ in range(400):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.grpc), timeout=60))
            connection.sendall(_HTTP2)
        assert_answers(server)


def test_a_grpc_connection_without_calls_is_closed(
    serve: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_service, "_IDLE_TIMEOUT_S", 0.3)
    client = serve(grpc_port=0)
    port = client.app.state.grpc_port  # type: ignore[attr-defined]
    with socket.create_connection(("127.0.0.1", port), timeout=60) as idle:
        idle.sendall(_HTTP2)
        while idle.recv(1000):
            pass


def test_the_server_raises_its_limit_of_open_files() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limit = 4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)
    output, _ = limited(_LIMITS, 64, limit).communicate(timeout=60)
    assert output.split() == [str(limit)] * 3
