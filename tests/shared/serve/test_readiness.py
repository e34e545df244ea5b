"""The readiness of the server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from shared.serve.oip import networks
from shared.serve.runtime import readiness
from tests.shared.serve.echo import csv, until

Serve = Callable[..., TestClient]
READY = "/v2/health/ready"


@pytest.fixture
def network(tmp_path: Path, echo_app: object) -> Path:
    """The network of the older version, which the predictor does not need."""
    return tmp_path / "echo" / "weights" / "echo" / "1" / "model.onnx"


@pytest.mark.parametrize("warm", [True, False])
def test_a_server_with_an_altered_network_is_not_ready(serve: Serve, network: Path, warm: bool) -> None:
    network.write_bytes(network.read_bytes() + b"\0")
    client = serve(warm=warm)
    until(lambda: client.get("/v2/models/echo/versions/2/ready").status_code == 200)
    until(lambda: not warm or client.get("/healthz").json()["apps"]["echo"]["predictor"] == "loaded")
    response = client.get(READY)
    assert response.status_code == 503 and response.json()["ready"] is False
    assert response.json()["reason"].startswith("the model echo ")
    assert client.get("/v2/health/live").json() == {"live": True}


def test_a_server_without_models_is_not_ready(serve: Serve, network: Path) -> None:
    for path in network.parents[1].rglob("manifest.json"):
        path.unlink()
    assert serve().get(READY).status_code == 503


def test_a_server_becomes_ready_when_everything_is_loaded_after_a_failure(
    serve: Serve, network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "_RECHECK_INTERVAL_S", 0.0)
    whole = network.read_bytes()
    network.write_bytes(b"")
    client = serve()
    assert client.get("/v2/models/echo/versions/1/ready").status_code == 503
    assert client.get(READY).status_code == 503
    network.write_bytes(whole)
    assert client.get("/v2/models/echo/versions/1/ready").status_code == 200
    assert client.get(READY).status_code == 200


def test_the_result_of_a_check_is_cached(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    open_artifact = networks.open_artifact
    monkeypatch.setattr(networks, "open_artifact", lambda path: (opened.append(path), open_artifact(path))[1])
    client = serve()
    assert {client.get(READY).status_code for _ in range(5)} == {200}
    assert len(opened) == 2, "one check for each version"
    assert client.post("/api/echo/predict", files=[csv(1)]).status_code == 200
    assert client.get(READY).status_code == 200 and len(opened) == 2


def test_readiness_covers_a_model_that_was_unloaded_and_loaded_again(serve: Serve) -> None:
    client = serve(warm=True)
    until(lambda: client.get(READY).status_code == 200)
    assert client.post("/v2/repository/models/echo/unload").status_code == 200
    assert client.get(READY).json() == {"ready": True}
    assert client.post("/v2/repository/models/echo/load").status_code == 200
    pool = client.app.state.networks.find("echo", "2").model.value  # type: ignore[attr-defined]
    pool._slots[0].state = "failed"
    response = client.get(READY)
    assert response.status_code == 503 and "the model echo" in response.json()["reason"]
