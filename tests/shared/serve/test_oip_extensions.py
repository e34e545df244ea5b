"""Triton's extensions of the protocol: configuration, statistics, the repository, compression, parameters."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.shared.serve.echo import write_artifact
from tests.shared.serve.test_oip import INDEX, INFER, X

BODY = {"inputs": [X, INDEX]}


def test_the_configuration_has_triton_s_format(echo_client: TestClient) -> None:
    config = echo_client.get("/v2/models/echo/config").json()
    assert (config["name"], config["platform"], config["max_batch_size"]) == ("echo", "onnxruntime_onnx", 8)
    assert config["input"][0] == {"name": "x", "data_type": "TYPE_FP32", "dims": [2]}
    assert echo_client.get("/v2/models/echo/versions/1/config").json()["output"][1]["name"] == "z"
    assert echo_client.get("/v2/models/none/config").status_code == 404


def test_statistics_count_requests_and_rows(echo_client: TestClient) -> None:
    assert echo_client.post(INFER, json=BODY).status_code == 200
    assert echo_client.post(INFER, json={}).status_code == 400
    newest = echo_client.get("/v2/models/echo/versions/2/stats").json()["model_stats"][0]
    assert (newest["inference_count"], newest["execution_count"]) == (1, 1)
    stats = newest["inference_stats"]
    assert stats["success"]["count"] == 1 and stats["success"]["ns"] > 0 and stats["fail"]["count"] == 1
    assert [entry["version"] for entry in echo_client.get("/v2/models/echo/stats").json()["model_stats"]] == ["1", "2"]
    assert len(echo_client.get("/v2/models/stats").json()["model_stats"]) == 2


def test_a_new_version_is_loaded_and_a_model_unloaded_without_losing_requests(
    echo_client: TestClient, tmp_path: Path
) -> None:
    def states() -> dict[str, str]:
        return {entry["version"]: entry["state"] for entry in echo_client.post("/v2/repository/index").json()}

    assert states() == {"1": "UNAVAILABLE", "2": "UNAVAILABLE"}
    write_artifact(tmp_path / "echo" / "weights", 3)
    assert echo_client.post("/v2/repository/models/echo/load").json() == {}
    assert states() == {"1": "READY", "2": "READY", "3": "READY"}
    answer = echo_client.post(INFER, json=BODY).json()
    assert answer["model_version"] == "3"
    assert echo_client.post("/v2/repository/models/echo/unload").json() == {}
    assert set(states().values()) == {"UNAVAILABLE"}
    assert echo_client.post("/v2/repository/index", json={"ready": True}).json() == []
    for response in (echo_client.post(INFER, json=BODY), echo_client.get("/v2/models/echo/ready")):
        assert response.status_code == 404 and "was unloaded" in response.json()["error"]
    assert set(states().values()) == {"UNAVAILABLE"}, "only an operator loads it again"
    assert echo_client.get("/v2/health/ready").status_code == 200, "an unloaded model does not make the server unready"
    assert echo_client.post("/v2/repository/models/echo/load").json() == {}
    assert echo_client.post(INFER, json=BODY).status_code == 200
    assert echo_client.post("/v2/repository/models/none/load").status_code == 404


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_bodies_may_be_compressed(echo_client: TestClient, encoding: str, pack: Callable[[bytes], bytes]) -> None:
    packed = pack(json.dumps(BODY).encode())
    response = echo_client.post(INFER, content=packed, headers={"Content-Encoding": encoding})
    assert response.status_code == 200 and response.json() == echo_client.post(INFER, json=BODY).json()


@pytest.mark.parametrize(
    ("content", "encoding", "status"),
    [
        (gzip.compress(bytes(5_000_000)), "gzip", 413),
        (b"no gzip", "gzip", 400),
        (b"{}", "br", 415),
    ],
)
def test_a_body_that_cannot_be_decompressed_or_becomes_too_large_is_refused(
    echo_client: TestClient, content: bytes, encoding: str, status: int
) -> None:
    response = echo_client.post(INFER, content=content, headers={"Content-Encoding": encoding})
    assert response.status_code == status and response.json()["error"]


def test_a_large_answer_is_compressed_if_the_client_accepts_it(echo_client: TestClient) -> None:
    rows = 3000
    inputs = [{**X, "shape": [rows, 2], "data": [1.0] * 2 * rows}, {**INDEX, "shape": [rows], "data": [1] * rows}]
    response = echo_client.post(INFER, json={"inputs": inputs}, headers={"Accept-Encoding": "gzip"})
    assert response.headers["Content-Encoding"] == "gzip" and response.json()["outputs"][0]["shape"] == [rows, 2]
    for accepted in ("identity", "gzip;q=0", "deflate, gzip; q=0.0, br"):
        plain = echo_client.post(INFER, json={"inputs": inputs}, headers={"Accept-Encoding": accepted})
        assert "Content-Encoding" not in plain.headers and plain.json() == response.json(), accepted
    weighed = echo_client.post(INFER, json={"inputs": inputs}, headers={"Accept-Encoding": "br, gzip;q=0.5"})
    assert weighed.headers["Content-Encoding"] == "gzip"


@pytest.mark.parametrize(
    ("parameters", "status"),
    [({"timeout": 10_000_000}, 200), ({"timeout": 1}, 504), ({"timeout": 0}, 400), ({"priority": 3}, 400)],
)
def test_parameters_are_applied_or_refused(echo_client: TestClient, parameters: dict[str, Any], status: int) -> None:
    response = echo_client.post(INFER, json={**BODY, "parameters": parameters})
    assert response.status_code == status, response.text
