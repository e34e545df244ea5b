"""Worker processes: a crash of one ends neither the server nor the requests of others."""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from shared.app import App
from shared.errors import InvalidInputError
from shared.serve.app import create_app
from shared.serve.runtime.worker_folder import WorkerFolder
from shared.serve.runtime.worker_process import only_gpu
from shared.serve.settings import Settings, read_settings
from shared.serve.worker.messages import (
    BrokenMessage,
    Memory,
    Message,
    SharedBytes,
    bundle,
    receive,
    send,
    socket_pair,
    unbundle,
    write_to_room,
)
from tests.shared.serve.echo import csv, until

PREDICT, READY = "/api/fragile/predict", "/v2/health/ready"
INFER = "/v2/models/echo/infer"


@pytest.fixture
def serve(tmp_path: Path, settings: Settings, fragile: dict[str, App]) -> Iterator[Callable[..., TestClient]]:
    """Makes a client of a server with the application ``fragile``."""
    opened: list[TestClient] = []

    def make(**changes: Any) -> TestClient:
        settings_changes = {"workers": 1, "registry": tmp_path / "registry", **changes}
        opened.append(TestClient(create_app(settings.model_copy(update=settings_changes), fragile)).__enter__())
        return opened[-1]

    yield make
    for client in opened:
        client.__exit__(None, None, None)


def predict(client: TestClient, **options: str) -> Any:
    return client.post(PREDICT, files=[csv(1)], data=options)


def process(client: TestClient) -> int:
    """The process id of the worker that answers."""
    response = predict(client)
    assert response.status_code == 200, response.text
    return int(response.json()["result"]["process"])


def workers(client: TestClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/healthz").json()["apps"]["fragile"]["workers"]
    return found


@pytest.mark.parametrize(("how", "name"), [("abort", "SIGABRT"), ("kill", "SIGKILL")])
def test_a_request_that_crashes_its_worker_is_503_and_the_next_is_answered(
    serve: Callable[..., TestClient], how: str, name: str
) -> None:
    client = serve()
    first = process(client)
    assert first != os.getpid() and workers(client)[0]["pid"] == first and workers(client)[0]["memory_bytes"] > 1e6
    lost = predict(client, how=how)
    assert lost.status_code == 503 and name in lost.json()["detail"] and int(lost.headers["Retry-After"]) > 0
    assert client.get("/v2/health/live").status_code == 200
    second = process(client)
    assert second not in (first, os.getpid())
    assert workers(client)[0] | {"memory_bytes": 0} == {
        "state": "idle",
        "pid": second,
        "memory_bytes": 0,
        "restarts": 1,
        "failure": None,
        "programs": {},
    }


def test_a_worker_killed_while_loading_is_503_with_advice_and_the_next_request_starts_another(
    serve: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = serve()
    monkeypatch.setenv("FRAGILE_KILLED_WHILE_LOADING", "yes")
    refused = predict(client)
    assert refused.status_code == 503 and refused.headers["Retry-After"] == "5"
    for part in ("ended while loading (SIGKILL)", "try again in 5 seconds", "out of memory", "TRIVIUM_WORKERS"):
        assert part in refused.json()["detail"]
    assert "Fragile: its worker ended while loading (SIGKILL)" in caplog.text
    monkeypatch.delenv("FRAGILE_KILLED_WHILE_LOADING")
    assert process(client)


def test_metrics_and_the_log_cover_worker_processes(
    serve: Callable[..., TestClient], caplog: pytest.LogCaptureFixture
) -> None:
    client = serve()
    process(client)
    with caplog.at_level(logging.INFO, "trivium.access"):
        response = client.post(PREDICT, files=[csv(1)], data={"how": "kill"}, headers={"X-Request-Id": "lost-1"})
    assert response.headers["X-Request-Id"] == "lost-1"
    line = json.loads(next(record.message for record in caplog.records if record.name == "trivium.access"))
    assert (line["request"], line["status"]) == ("lost-1", 503) and line["ms"] > 0
    process(client)
    text = client.get("/metrics").text
    assert 'trivium_inference_request_duration_seconds_count{model="fragile",version="1"} 2.0' in text
    assert 'nv_inference_request_failure{model="fragile",reason="REJECTED",version="1"} 1.0' in text
    assert 'trivium_worker_restarts{model="fragile"} 1.0' in text
    took_us, resident_bytes = (
        float(re.search(rf'^{name}{{model="fragile".*}} (.*)$', text, re.MULTILINE).group(1))
        for name in ("nv_inference_request_duration_us", "trivium_worker_resident_memory_bytes")
    )
    assert took_us > 0 and resident_bytes > 1e6


def test_other_workers_continue_while_one_is_lost(serve: Callable[..., TestClient]) -> None:
    client = serve(workers=2)
    first = process(client)
    until(lambda: [worker["state"] for worker in workers(client)] == ["idle", "idle"], 30)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(predict, client, how="hang")
        until(lambda: "busy" in [worker["state"] for worker in workers(client)])
        idle_pid = process(client)
        assert not waiting.done()
        busy_pid = next(worker["pid"] for worker in workers(client) if worker["state"] == "busy")
        assert {busy_pid, idle_pid} >= {first}
        os.kill(busy_pid, signal.SIGKILL)
        assert process(client) == idle_pid and waiting.result(20).status_code == 503


def test_readiness_says_that_a_worker_is_being_replaced(serve: Callable[..., TestClient]) -> None:
    client = serve(warm=True)
    until(lambda: client.get(READY).status_code == 200, 30)
    os.kill(workers(client)[0]["pid"], signal.SIGKILL)
    until(lambda: client.get(READY).json() == {"ready": False, "reason": "Fragile: its workers are being replaced"})
    until(lambda: client.get(READY).status_code == 200, 30)
    assert process(client), "a request in the meantime would have waited"


def test_a_request_past_its_deadline_is_really_stopped(serve: Callable[..., TestClient]) -> None:
    client = serve(deadline_s=2)
    until(lambda: predict(client).status_code == 200, 30)
    first = process(client)
    late = predict(client, how="hang")
    assert late.status_code == 504
    until(lambda: not Path(f"/proc/{first}").exists())
    until(lambda: predict(client).status_code == 200, 30)


def test_the_unpacked_files_of_a_killed_worker_are_removed(serve: Callable[..., TestClient], tmp_path: Path) -> None:
    client = serve()
    assert process(client)
    assert predict(client, how=f"leave {tmp_path / 'where'}").status_code == 503
    folder = Path((tmp_path / "where").read_text())
    until(lambda: not folder.parent.exists())
    assert "trivium-worker-" in folder.parent.name
    assert process(client)


def test_the_unpacked_files_of_a_killed_server_are_removed_when_the_next_one_starts(
    serve: Callable[..., TestClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    program = "import os; from shared.serve.runtime.worker_folder import *; (WorkerFolder().path / 'scan').touch()"
    killed = [sys.executable, "-c", f"{program}; os._exit(9)"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    subprocess.run(killed, env=environment, cwd=Path(__file__).parents[3], check=False)
    (left,) = tmp_path.glob("trivium-worker-*/scan")
    own = WorkerFolder()
    serve(workers=0)
    assert not left.parent.exists() and own.path.exists(), "only the folders of servers that have ended are removed"
    own.remove()
    assert not own.path.exists()


def test_a_request_above_the_memory_limit_of_a_worker_is_413(serve: Callable[..., TestClient]) -> None:
    client = serve(worker_memory_bytes=2_000_000_000)
    first = process(client)
    refused = predict(client, how="memory")
    assert refused.status_code == 413 and "TRIVIUM_WORKER_MEMORY_BYTES" in refused.json()["detail"]
    assert process(client) != first, "a worker that ran out of memory is replaced, since it may still hold some"


def test_networks_have_their_own_processes_and_large_tensors_use_shared_memory(
    serve: Callable[..., TestClient],
) -> None:
    client = serve(max_tensor_bytes=4_000_000, max_batch=4)
    rows = 100_000
    x = np.arange(2 * rows, dtype="<f4").reshape(rows, 2)
    index = np.zeros(rows, "<i8")
    inputs = [
        {"name": "x", "datatype": "FP32", "shape": [rows, 2], "parameters": {"binary_data_size": x.nbytes}},
        {"name": "index", "datatype": "INT64", "shape": [rows], "parameters": {"binary_data_size": index.nbytes}},
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    response = client.post(
        INFER,
        content=head + x.tobytes() + index.tobytes(),
        headers={"Inference-Header-Content-Length": str(len(head))},
    )
    assert response.status_code == 200, response.text
    start = int(response.headers["Inference-Header-Content-Length"])
    y = np.frombuffer(response.content, "<f4", 2 * rows, start).reshape(rows, 2)
    np.testing.assert_array_equal(y, 2 * x + 1)
    (worker,) = client.get("/healthz").json()["networks"]["echo version 1"]
    assert worker["pid"] not in (None, os.getpid())
    os.kill(worker["pid"], signal.SIGKILL)
    small = {"inputs": [{**inputs[0], "shape": [1, 2], "data": [1, 2], "parameters": None},
                        {**inputs[1], "shape": [1], "data": [1], "parameters": None}]}  # fmt: skip
    until(lambda: client.post(INFER, json=small).status_code == 200, 30)
    assert process(client)


def test_a_network_computes_with_the_requested_program(serve: Callable[..., TestClient], tmp_path: Path) -> None:
    body = {
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [3, 2], "data": [1, 2, 3, 4, 5, 6]},
            {"name": "index", "datatype": "INT64", "shape": [3], "data": [0, 1, 0]},
        ]
    }
    answers = []
    for program, reason in (("openvino", "openvino: it was requested"), ("torchscript", "onnx: its outputs are the")):
        client = serve(program=program, store=tmp_path / program)
        answers.append(client.post(INFER, json=body).json()["outputs"])
        (worker,) = client.get("/healthz").json()["networks"]["echo version 1"]
        assert worker["programs"]["echo"].startswith(reason)
    assert answers[0] == answers[1] and answers[0][0]["data"] == [3, 5, 7, 9, 11, 13]


def test_a_large_answer_is_complete(serve: Callable[..., TestClient]) -> None:
    client = serve()
    answer = predict(client, bytes="3000000").json()
    assert len(client.get(answer["files"]["large"]).content) == 3_000_000


def test_workers_end_with_the_server(serve: Callable[..., TestClient]) -> None:
    client = serve()
    worker = process(client)
    client.__exit__(None, None, None)
    assert not Path(f"/proc/{worker}").exists()
    client.__enter__()


def test_messages_are_received_unchanged_inline_and_in_shared_memory() -> None:
    mine, theirs = socket_pair()
    with mine, theirs:
        for blobs in ([b""], [b"abc", bytes(10)], [os.urandom(1_000_000), b"x"], [b""] * 5000):
            messages = [Message({"n": n, "text": "沪\ud800"}, blobs) for n in range(2)]
            sending = threading.Thread(target=send, args=(mine, bundle(messages)))
            sending.start()
            found = receive(theirs)
            sending.join()
            assert found is not None
            for array in unbundle(found):
                assert [bytes(blob) for blob in array.blobs] == blobs and array.head["text"] == "沪\ud800"
        mine.close()
        assert receive(theirs) is None


def test_shared_bytes_are_sent_with_room_for_the_reply() -> None:
    mine, theirs = socket_pair()
    with mine, theirs:
        shared, back = [], []
        for number in range(3):
            shared.append(SharedBytes(Memory(300_000), 24, 70_001, back.append))
            shared[-1].body[:] = b"%d" % number + os.urandom(70_000)
        for blob in (b"a", os.urandom(100_000)):  # a request of a worker that ended goes to another one
            messages = [Message({}, [blob], shared[:1]), Message({}, [], shared[1:]), Message({}, [b"b", b"c"])]
            send(mine, bundle(messages))
            found = receive(theirs)
            assert found is not None
            first, second, third = unbundle(found)
            assert bytes(first.blobs[0]) == blob and bytes(first.blobs[1]) == bytes(shared[0].body)
            assert [bytes(blob[:1]) for blob in second.blobs] == [b"1", b"2"]
            assert [bytes(blob) for blob in third.blobs] == [b"b", b"c"] and third.room is None
            assert write_to_room([bytes(10), bytes(5)], first.room) is None, "small enough for a packet"
            assert write_to_room([bytes(300_000)], first.room) is None, "too large for the room"
            parts = [os.urandom(50_000), os.urandom(20_000)]
            spans = write_to_room(parts, first.room)
            assert spans is not None and [bytes(shared[0].room[at : at + size]) for at, size in spans] == parts
        assert not back
        del messages, shared, first, second
        gc.collect()
        assert len(back) == 3


def test_shared_memory_that_could_be_truncated_is_refused() -> None:
    mine, theirs = socket_pair()
    with mine, theirs:
        shared = SharedBytes(Memory(100_000), 0, 1, lambda _: None)
        shared.descriptor = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
        os.ftruncate(shared.descriptor, 4096)
        send(mine, bundle([Message({}, (), [shared])]))
        os.close(shared.descriptor)
        with pytest.raises(BrokenMessage, match="not have a fixed size"):
            receive(theirs)


@pytest.mark.parametrize("packet", [b"\0", b"\0" + bytes(4), b"\0\1\0\0\0" + b"\xff" * 8, b"\1", b"\0" + b"x" * 99])
def test_invalid_messages_are_detected(packet: bytes) -> None:
    mine, theirs = socket_pair()
    with mine, theirs:
        mine.send(packet)
        with pytest.raises(BrokenMessage):
            receive(theirs)


def test_instances_run_on_the_named_devices(serve: Callable[..., TestClient]) -> None:
    client = serve(instances="cpu=2")
    assert predict(client).status_code == 200
    until(lambda: [worker["state"] for worker in workers(client)] == ["idle", "idle"])
    (group,) = client.get("/v2/models/echo/config").json()["instance_group"]
    assert (group["kind"], group["count"]) == ("KIND_CPU", 2)


def test_instances_select_the_gpu_of_a_process() -> None:
    settings = read_settings(instances="cuda:1=2,cpu=1")
    assert settings.worker_devices == [("cuda", 1), ("cuda", 1), ("cpu", None)]
    assert settings.with_one_worker().worker_devices == [("cuda", 1)]
    assert Settings(device="cuda", workers=2).worker_devices == [("cuda", None)] * 2
    assert not Settings(workers=0).worker_devices
    assert [only_gpu(1, visible) for visible in (None, "4,5", "GPU-a", "")] == ["1", "5", "", ""]
    for wrong in ("gpu=1", "cuda:0=0", "cuda=1", "cpu", "cpu=1,", "cuda:-1=1"):
        with pytest.raises(InvalidInputError, match="TRIVIUM_INSTANCES"):
            read_settings(instances=wrong)


def test_all_workers_are_killed_before_the_stopping_server_waits_for_any(
    serve: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, calls = serve(), list[tuple[str, int]]()
    assert predict(client).status_code == 200
    assert client.get("/v2/models/echo/ready").status_code == 200  # its network has a worker of its own
    kill, wait = subprocess.Popen.kill, subprocess.Popen.wait

    def record_kill(process: subprocess.Popen[bytes]) -> None:
        calls.append(("kill", process.pid))
        kill(process)

    def record_wait(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        calls.append(("wait", process.pid))
        return wait(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "kill", record_kill)
    monkeypatch.setattr(subprocess.Popen, "wait", record_wait)
    client.__exit__(None, None, None)
    killed_first = {process for _, process in takewhile(lambda call: call[0] == "kill", calls)}
    assert len(killed_first) == 2 and killed_first == {process for _, process in calls}
