"""Large bodies and answers pass between connection and worker in reused memory."""

from __future__ import annotations

import gc
import json
import socket
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse, parse_headers
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI

from shared.app import App
from shared.deploy.artifact import TensorSpec
from shared.serve.app import create_app
from shared.serve.runtime import large_bodies
from shared.serve.runtime.protocol import header_deadline_protocol
from shared.serve.runtime.shared_memory import SharedMemoryPool
from shared.serve.settings import Settings
from shared.serve.worker.codec import read_request
from shared.serve.worker.network import OnnxNetwork
from tests.conftest import serving
from tests.shared.serve.echo import until

INFER = "/v2/models/echo/infer"
ROWS = 300_000


@pytest.fixture
def server(tmp_path: Path, settings: Settings, fragile: dict[str, App]) -> FastAPI:
    changes = {"hosts": None, "workers": 1, "registry": tmp_path / "registry", "max_tensor_bytes": 8_000_000}
    return create_app(settings.model_copy(update=changes), fragile)


@pytest.fixture
def connection(place: tuple[str, int]) -> Iterator[HTTPConnection]:
    with closing(HTTPConnection(*place, timeout=60)) as found:
        yield found


@pytest.fixture
def place(server: FastAPI) -> Iterator[tuple[str, int]]:
    with serving(server, http=header_deadline_protocol(10)) as address:
        host, port = address.removeprefix("http://").split(":")
        yield host, int(port)


def request(seed: int, rows: int = ROWS) -> tuple[bytes, dict[str, str], Any]:
    x = np.random.default_rng(seed).random((rows, 2), np.float32)
    index = np.zeros(rows, np.int64)
    inputs = [
        {"name": name, "shape": list(array.shape), "datatype": kind, "parameters": {"binary_data_size": array.nbytes}}
        for name, array, kind in (("x", x, "FP32"), ("index", index, "INT64"))
    ]
    text = json.dumps({"id": "x" * seed, "inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    return text + x.tobytes() + index.tobytes(), {"Inference-Header-Content-Length": str(len(text))}, 2 * x + 1


def check(response: HTTPResponse, expected: Any) -> None:
    content = response.read()
    assert response.status == 200, content[:500]
    start = int(response.headers["Inference-Header-Content-Length"])
    np.testing.assert_array_equal(np.frombuffer(content, "<f4", expected.size, start), expected.ravel())


def test_large_bodies_are_received_one_after_another_over_one_connection(
    connection: HTTPConnection, server: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    receivers: list[large_bodies.BodyReceiver] = []
    receive = large_bodies.LargeBodyProtocol._receive
    monkeypatch.setattr(
        large_bodies.LargeBodyProtocol,
        "_receive",
        lambda self, *arguments: receivers.append(receive(self, *arguments)) or receivers[-1],
    )
    for seed in range(5):
        body, headers, expected = request(seed)
        connection.request("POST", INFER, body, headers)
        check(connection.getresponse(), expected)
        connection.request("GET", "/v2/health/live")
        assert connection.getresponse().read() == b'{"live":true}'
    assert len(receivers) == 5 and all(receiver.left == 0 for receiver in receivers)
    memory: SharedMemoryPool = server.state.networks.shared_memory
    # The size of the first answer was not known; the other answers are next to their requests, in the same memory.
    until(lambda: (gc.collect(), len(memory._cached))[1] == 2)


def test_a_refused_body_is_discarded_and_the_connection_stays_usable(connection: HTTPConnection) -> None:
    body, headers, expected = request(0)
    for path, status in (("/v2/models/none/infer", 404), (INFER.replace("infer", "versions/9/infer"), 404)):
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        assert (response.status, bool(response.read())) == (status, True)
    connection.request("POST", INFER, bytes(9_000_000), headers)
    assert connection.getresponse().read().startswith(b'{"error":"the request is larger')
    connection.request("POST", INFER, body[:-8], {**headers, "Content-Type": "application/octet-stream"})
    assert b"binary_data_size" in connection.getresponse().read()
    connection.request("POST", INFER, body, headers)
    check(connection.getresponse(), expected)


def test_chunked_sending_pipelining_expect_continue_and_disconnects(
    place: tuple[str, int], connection: HTTPConnection, server: FastAPI
) -> None:
    body, headers, expected = request(3)
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n".encode()
    head += b"".join(f"{name}: {value}\r\n".encode() for name, value in headers.items())
    for sizes in ([len(body) - 1, 1], [0, 200_000, 3, len(body) - 200_003]):
        with socket.create_connection(place, timeout=60) as sent:
            sent.sendall(head + b"Expect: 100-continue\r\n\r\n")
            assert sent.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            at = 0
            for size in sizes:
                sent.sendall(body[at : at + size])
                at += size
            sent.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n" + head + b"\r\n" + body)
            with sent.makefile("rb") as stream:
                for expected_content in (expected, None, expected):
                    assert stream.readline() == b"HTTP/1.1 200 OK\r\n"
                    content = stream.read(int(parse_headers(stream)["Content-Length"]))
                    if expected_content is None:
                        assert content == b'{"live":true}'
                    else:
                        assert expected_content.tobytes() in content
    with socket.create_connection(place, timeout=60) as sent:
        sent.sendall(head + b"\r\n" + body[:500_000])
    connection.request("POST", INFER, body, headers)
    check(connection.getresponse(), expected)
    until(lambda: not server.state.networks.memory._reserved)


def test_memory_is_reused_once_nothing_refers_to_it() -> None:
    memory = SharedMemoryPool(3 << 20)
    first = memory.take(100_000, 7, 50_000)
    assert (first.start + 7) % 64 == 0 and len(first.body) == 100_000 and len(first.room) >= 50_000
    place = first.descriptor
    second = memory.take(100_000, 0, 0)
    assert second.descriptor != place
    del first
    third = memory.take(90_000, 0, 0)
    assert third.descriptor == place
    large = memory.take(5_000_000, 0, 0)
    del large, third, second
    assert sum(map(len, memory._cached)) <= 3 << 20


def test_only_tensors_in_unaligned_memory_are_copied() -> None:
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1,))
    entry = {"name": "x", "shape": [4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
    text = json.dumps({"inputs": [entry]}).encode()
    for start, shared in ((-len(text) % 64, True), (1 - len(text) % 64 + 64, False)):
        memory = bytearray(400)
        view = memoryview(memory)[start : start + len(text) + 16]
        view[:] = text + np.arange(4, dtype="<f4").tobytes()
        found = read_request(view, len(text), [spec], [spec]).inputs["x"]
        assert found.tolist() == [0, 1, 2, 3] and found.flags.aligned
        if np.frombuffer(memory, np.uint8).ctypes.data % 4 == 0:
            assert np.shares_memory(found, np.frombuffer(memory, np.uint8)) == shared


@pytest.mark.parametrize(
    ("providers", "columns", "alone"),
    [(["CPU"], 300_000, True), (["CPU"], 9, False), (["CUDA", "CPU"], 300_000, False)],
)
def test_large_rows_are_computed_one_by_one_on_a_cpu(providers: list[str], columns: int, alone: bool) -> None:
    class Session:
        def get_providers(self) -> list[str]:
            return [f"{name}ExecutionProvider" for name in providers]

        def get_inputs(self) -> list[Any]:
            return []

        get_outputs = get_inputs

    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, columns))
    assert OnnxNetwork(Session()).has_large_rows([spec]) == alone
