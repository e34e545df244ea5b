"""Many connections that ask for nothing, on a server that may have few files open."""

from __future__ import annotations

import re
import resource
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

_SERVER = """
import sys
from pathlib import Path
from shared.serve.server import run
from shared.serve.settings import Settings
run(Settings(store=Path(sys.argv[1]), port=0, warm=False, header_s=60))
"""
_LIMITS = """
import resource, sys
from shared.serve.server import allow_files
print(allow_files(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def limited(program: str, soft: int, hard: int, *words: str) -> subprocess.Popen[str]:
    """The program in a process that may have so many files open."""
    begin = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
    command = [sys.executable, "-c", begin + program, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with limited(_SERVER, 256, 256, str(tmp_path)) as process:
        assert process.stdout is not None
        found = None
        while found is None:
            line = process.stdout.readline()
            assert line, "it ended"
            found = re.search(r"open (http://127\.0\.0\.1:\d+)", line)
        yield process, found[1]
        process.kill()


def test_idle_connections_give_way_to_those_that_ask(server: tuple[subprocess.Popen[str], str]) -> None:
    process, address = server
    host, port = address.removeprefix("http://").split(":")
    with ExitStack() as stack:
        for _ in range(600):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=20))
        for path in ("/v2/health/live", "/api/finance/cases"):
            with urllib.request.urlopen(f"{address}{path}", timeout=20) as answer:
                assert answer.status == 200
    process.terminate()
    assert process.stdout is not None
    assert "out of system resource" not in process.stdout.read()


def test_a_request_that_is_answered_keeps_its_connection_before_idle_ones(
    server: tuple[subprocess.Popen[str], str],
) -> None:
    host, port = server[1].removeprefix("http://").split(":")
    with ExitStack() as stack:
        first = stack.enter_context(socket.create_connection((host, int(port)), timeout=20))
        first.sendall(b"POST /api/finance/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n")
        for _ in range(400):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=20))
        first.sendall(b"12345")
        assert first.recv(1000).startswith(b"HTTP/1.1 415")


def test_the_server_may_have_as_many_files_open_as_it_may_allow_itself() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = 4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)
    shown, _ = limited(_LIMITS, 64, most).communicate(timeout=60)
    assert shown.split() == [str(most)] * 3
