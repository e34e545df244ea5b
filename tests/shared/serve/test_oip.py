"""The Open Inference Protocol, against its REST specification."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from fastapi.testclient import TestClient

from shared.app import App
from shared.deploy.artifact import open_artifact
from shared.serve.worker.network import OnnxNetwork, open_network
from tests.shared.serve.echo import until

INFER = "/v2/models/echo/infer"
X = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [[1.5, -2]]}
INDEX = {"name": "index", "datatype": "INT64", "shape": [1], "data": [1]}


def test_the_server_describes_itself_and_its_models(echo_client: TestClient) -> None:
    server = echo_client.get("/v2").json()
    assert server["name"] == "trivium" and server["version"] and "binary_tensor_data" in server["extensions"]
    assert echo_client.get("/v2/health/live").json() == {"live": True}
    assert echo_client.get("/v2/health/ready").json() == {"ready": True}
    model = echo_client.get("/v2/models/echo").json()
    assert model == {
        "name": "echo",
        "versions": ["1", "2"],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "index", "datatype": "INT64", "shape": [-1]},
        ],
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "z", "datatype": "FP32", "shape": [-1]},
        ],
    }
    assert echo_client.get("/v2/models/echo/versions/1").json()["versions"] == ["1"]
    assert echo_client.get("/v2/models/echo/versions/1/ready").json() == {"name": "echo", "ready": True}


def test_infer_uses_the_newest_version_or_the_requested_one(echo_client: TestClient) -> None:
    response = echo_client.post(INFER, json={"id": "a", "inputs": [INDEX, X]})
    assert response.status_code == 200
    assert response.json() == {
        "model_name": "echo",
        "model_version": "2",
        "id": "a",
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [5.0, -2.0]},
            {"name": "z", "datatype": "FP32", "shape": [1], "data": [20.0]},
        ],
    }
    first = echo_client.post(
        "/v2/models/echo/versions/1/infer", json={"inputs": [X, INDEX], "outputs": [{"name": "y"}]}
    )
    assert first.json()["model_version"] == "1" and "id" not in first.json()
    assert [output["data"] for output in first.json()["outputs"]] == [[4.0, -3.0]]


def test_data_may_be_flat(echo_client: TestClient) -> None:
    inputs = [{**X, "shape": [2, 2], "data": [1, 2, 3, 4]}, {**INDEX, "shape": [2], "data": [0, 1]}]
    outputs = echo_client.post(INFER, json={"inputs": inputs}).json()["outputs"]
    assert outputs[0]["shape"] == [2, 2] and outputs[0]["data"] == [4.0, 6.0, 8.0, 10.0]


def test_requests_and_answers_can_be_binary(echo_client: TestClient) -> None:
    header = {
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
            {"name": "index", "datatype": "INT64", "shape": [1], "parameters": {"binary_data_size": 8}},
        ],
        "outputs": [{"name": "z", "parameters": {"binary_data": True}}, {"name": "y"}],
    }
    head = json.dumps(header).encode()
    body = head + struct.pack("<2f", 1, 2) + struct.pack("<q", 2)
    response = echo_client.post(INFER, content=body, headers={"Inference-Header-Content-Length": str(len(head))})
    assert response.status_code == 200, response.text
    length = int(response.headers["Inference-Header-Content-Length"])
    described = json.loads(response.content[:length])["outputs"]
    assert described[0] == {"name": "z", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}
    assert described[1]["data"] == [4.0, 6.0]
    assert np.frombuffer(response.content[length:], "<f4").tolist() == [np.inf], "JSON cannot represent it"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v2/models/other", "no model 'other'"),
        ("/v2/models/other/infer", "no model 'other'"),
        ("/v2/models/other/ready", "no model 'other'"),
        ("/v2/models/echo/versions/9", "no version '9'; it has 1, 2"),
        ("/v2/models/echo/versions/9/infer", "no version '9'"),
        ("/v2/nothing", "nothing at /v2/nothing"),
    ],
)
def test_unknown_models_are_not_found(echo_client: TestClient, path: str, words: str) -> None:
    response = echo_client.post(path, json={}) if path.endswith("infer") else echo_client.get(path)
    assert response.status_code == 404
    assert list(response.json()) == ["error"] and words in response.json()["error"]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ([], "the body: Input should be"),
        ({}, "inputs: Field required"),
        ({"inputs": ["x"]}, "inputs.0: Input should be"),
        ({"inputs": [X]}, "'index' is missing"),
        ({"inputs": [X, X, INDEX]}, "twice"),
        ({"inputs": [{**X, "name": "w"}, INDEX]}, "no input 'w'; it has x, index"),
        ({"inputs": [{**X, "datatype": "FP64"}, INDEX]}, "'x' is FP32, not FP64"),
        ({"inputs": [{**X, "shape": [1, 3]}, INDEX]}, "[-1, 2]"),
        ({"inputs": [{**X, "shape": [2]}, INDEX]}, "[-1, 2]"),
        ({"inputs": [{**X, "shape": [-1, 2]}, INDEX]}, "inputs.0.shape.0: Input should be greater than or equal to 0"),
        ({"inputs": [{**X, "shape": [True, 2]}, INDEX]}, "inputs.0.shape.0: Input should be a valid integer"),
        ({"inputs": [{**X, "datatype": "\ud800"}, INDEX]}, "the body is not JSON"),  # a lone surrogate
        ({"inputs": [{**X, "shape": [10**30, 0], "data": []}, INDEX]}, "a shape that no array can have"),
        ({"inputs": [{**X, "shape": [0, 2**63], "data": []}, INDEX]}, "a shape that no array can have"),
        ({"inputs": [{**X, "data": [[1, 2, 3]]}, INDEX]}, "has shape [1, 3], not [1, 2]"),
        ({"inputs": [{**X, "data": [[1], [2]]}, INDEX]}, "has shape [2, 1]"),
        ({"inputs": [{**X, "data": [[1, 2], [3]]}, INDEX]}, "not an array"),
        ({"inputs": [{**X, "data": ["a", "b"]}, INDEX]}, "not FP32"),
        ({"inputs": [{**X, "data": [1e39, 1]}, INDEX]}, "cannot hold"),
        ({"inputs": [X, {**INDEX, "data": [1.5]}]}, "not INT64"),
        ({"inputs": [X, {**INDEX, "data": [2**63]}]}, "INT64"),
        ({"inputs": [X, {**INDEX, "shape": [2], "data": [0, 1]}]}, "'batch' is 1 in the input 'x' and 2 in 'index'"),
        ({"inputs": [X, {**INDEX, "data": [7]}]}, "cannot compute"),
        ({"inputs": [X, {"name": "index", "datatype": "INT64", "shape": [1]}]}, "no data"),
        ({"inputs": [X, INDEX], "outputs": [{"name": "w"}]}, "no output 'w'; it has y, z"),
        ({"inputs": [X, INDEX], "id": 7}, "id: Input should be a valid string"),
        ({"inputs": [X, {**INDEX, "parameters": {"binary_data_size": 8}}]}, "0 bytes are left"),
    ],
)
def test_bad_requests_are_refused_with_400(echo_client: TestClient, request_: Any, words: str) -> None:
    response = echo_client.post(INFER, content=json.dumps(request_))
    assert response.status_code == 400, response.text
    assert list(response.json()) == ["error"] and words in response.json()["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"inputs": [{"name": "x", "data": [NaN]}]}'])
def test_invalid_json_is_refused_with_400(echo_client: TestClient, body: bytes) -> None:
    response = echo_client.post(INFER, content=body)
    assert response.status_code == 400 and response.json()["error"]


@pytest.mark.parametrize("length", ["-1", "x", "99999", "9" * 5000])
def test_a_wrong_header_length_is_refused_with_400(echo_client: TestClient, length: str) -> None:
    response = echo_client.post(INFER, content=b"{}", headers={"Inference-Header-Content-Length": length})
    assert response.status_code == 400 and "Inference-Header-Content-Length" in response.json()["error"]


def test_a_body_above_the_limit_is_refused_with_413(echo_client: TestClient) -> None:
    response = echo_client.post(INFER, content=b" " * 100_001)
    assert response.status_code == 413 and response.json()["error"]


def test_too_much_json_is_refused_and_binary_data_is_the_alternative(serve: Callable[..., TestClient]) -> None:
    client = serve(max_json_bytes=1000)
    plain = client.post(INFER, content=b" " * 1001)
    head = {"Inference-Header-Content-Length": "1001"}
    stated = client.post(INFER, content=b" " * 1001, headers=head)
    unstated = client.post(INFER, content=iter([b" " * 1001]))
    for answer in (plain, stated, unstated):
        assert answer.status_code == 413 and "binary_data_size" in answer.json()["error"]
        assert "TRIVIUM_MAX_JSON_BYTES" in answer.json()["error"]
    rows = 100
    inputs = [
        {**X, "shape": [rows, 2], "data": None, "parameters": {"binary_data_size": 8 * rows}},
        {**INDEX, "shape": [rows], "data": None, "parameters": {"binary_data_size": 8 * rows}},
    ]
    header = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    body = header + bytes(16 * rows)
    binary = client.post(INFER, content=body, headers={"Inference-Header-Content-Length": str(len(header))})
    assert len(body) > 1000 and binary.status_code == 200
    as_json = body.replace(b"true", b"null")
    response = client.post(INFER, content=as_json, headers={"Inference-Header-Content-Length": str(len(header))})
    assert response.status_code == 422 and "request binary_data" in response.json()["error"]


def test_many_rows_are_computed_in_batches(serve: Callable[..., TestClient]) -> None:
    client = serve(max_batch=8)
    inputs = [
        {**X, "shape": [21, 2], "data": list(range(42))},
        {**INDEX, "shape": [21], "data": [n % 2 for n in range(21)]},
    ]
    outputs = client.post(INFER, json={"inputs": inputs}).json()["outputs"]
    assert outputs[0]["shape"] == [21, 2] and outputs[0]["data"] == [2 * n + 2 for n in range(42)]
    assert outputs[1]["data"] == [10 + 10 * (n % 2) for n in range(21)]
    text = client.get("/metrics").text
    for name, value in {"count": 21, "exec_count": 3, "request_success": 1}.items():
        assert f'nv_inference_{name}{{model="echo",version="2"}} {value}.0' in text


def test_while_networks_compute_the_server_is_live_and_refuses_excess_requests(
    serve: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    go, compute = threading.Event(), OnnxNetwork.compute

    def compute_late(self: OnnxNetwork, *batch: Any) -> Any:
        assert go.wait(20)
        return compute(self, *batch)

    monkeypatch.setattr(OnnxNetwork, "compute", compute_late)
    client = serve(queue_length=50, max_batch=8)
    with ThreadPoolExecutor(60) as pool:
        futures = [pool.submit(client.post, INFER, json={"inputs": [X, INDEX]}) for _ in range(60)]
        until(lambda: 'failure{model="echo",reason="REJECTED",version="2"} 2.0' in client.get("/metrics").text)
        assert client.get("/v2/health/live").json() == {"live": True}
        assert client.get("/healthz").json()["status"] == "ok"
        assert client.get("/v2/models/echo").status_code == client.get("/echo").status_code == 200
        go.set()
        responses = [future.result() for future in futures]
    rejected = [response for response in responses if response.status_code == 503]
    assert len(rejected) == 2 and all(response.headers["Retry-After"] == "5" for response in rejected)
    assert sum(response.status_code == 200 for response in responses) == 58


def test_after_the_deadline_a_network_answers_504(
    serve: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    monkeypatch.setattr(OnnxNetwork, "compute", lambda self, batch, most: [go.wait(20)])
    client = serve(deadline_s=0.2)
    assert client.get("/v2/models/echo/ready").status_code == 200, "a model that is not loaded in time answers 503"
    response = client.post(INFER, json={"inputs": [X, INDEX]})
    go.set()
    assert response.status_code == 504 and "deadline" in response.json()["error"]


def test_values_that_json_cannot_represent_are_refused_with_a_remedy(echo_client: TestClient) -> None:
    response = echo_client.post(INFER, json={"inputs": [X, {**INDEX, "data": [2]}]})
    assert response.status_code == 422 and "binary_data" in response.json()["error"]


def test_another_method_is_refused_in_the_protocol_s_error_format(echo_client: TestClient) -> None:
    response = echo_client.get(INFER)
    assert response.status_code == 405 and list(response.json()) == ["error"]


def test_an_altered_network_does_not_answer(echo_client: TestClient, tmp_path: Any) -> None:
    network = tmp_path / "echo" / "weights" / "echo" / "1" / "model.onnx"
    network.write_bytes(network.read_bytes() + b"\0")
    response = echo_client.get("/v2/models/echo/versions/1/ready")
    assert response.status_code == 503 and "differs from its digest" in response.json()["error"]
    assert echo_client.get("/v2/models/echo/versions/2/ready").status_code == 200


def test_rows_of_waiting_requests_are_computed_in_one_batch(
    serve: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    go, compute = threading.Event(), OnnxNetwork.compute

    def compute_late(self: OnnxNetwork, *batch: Any) -> Any:
        assert go.wait(20)
        return compute(self, *batch)

    monkeypatch.setattr(OnnxNetwork, "compute", compute_late)
    client = serve(max_batch=14)
    assert client.get("/v2/models/echo/ready").status_code == 200

    def ask(n: int) -> list[float]:
        inputs = [{**X, "shape": [2, 2], "data": [n, 0, n, 1]}, {**INDEX, "shape": [2], "data": [0, 1]}]
        outputs = client.post(INFER, json={"inputs": inputs}).json()["outputs"]
        return outputs[0]["data"] + outputs[1]["data"]

    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(ask, range(8))
        until(lambda: 'pending_request_count{model="echo",version="2"} 7.0' in client.get("/metrics").text)
        go.set()
        assert list(answers) == [[2 * n + 2, 2, 2 * n + 2, 4, 10, 20] for n in range(8)]
    text = client.get("/metrics").text
    values = {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if 'version="2"' in line}
    assert values["nv_inference_count"] == 16
    assert values["nv_inference_request_success"] == 8
    assert values["nv_inference_exec_count"] == 2, "the first batch, and the one of the waiting requests"


def test_a_network_that_differs_from_its_manifest_does_not_answer(
    serve: Callable[..., TestClient], tmp_path: Path
) -> None:
    path = tmp_path / "echo" / "weights" / "echo" / "2" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["inputs"][0]["shape"] = [-1, 3]
    path.write_text(json.dumps(manifest))
    response = serve().get("/v2/models/echo/ready")
    assert response.status_code == 503 and "[-1, 2] there but [-1, 3] in manifest.json" in response.json()["error"]


def test_a_network_computes_with_the_configured_number_of_threads(
    tmp_path: Path, echo_app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread_counts, session = [], onnxruntime.InferenceSession

    def opened(path: str, options: Any, **keywords: Any) -> Any:
        thread_counts.append(options.intra_op_num_threads)
        return session(path, options, **keywords)

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    monkeypatch.setenv("TRIVIUM_THREADS", "3")
    open_network(open_artifact(echo_app.weights / "echo" / "1"), "cpu")
    assert thread_counts == [3]
