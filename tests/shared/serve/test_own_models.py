"""A server with a user's own models, which take precedence over the shipped ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from shared.app import App
from shared.deploy.registry import Registry
from shared.errors import InvalidInputError
from shared.serve.app import create_app
from shared.serve.settings import Settings
from tests.shared.serve.echo import Echo, csv, write_artifact

Serve = Callable[..., TestClient]


def infer(client: TestClient, path: str) -> float:
    inputs = [
        {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0, 0]},
        {"name": "index", "datatype": "INT64", "shape": [1], "data": [0]},
    ]
    response = client.post(f"/v2/models/{path}/infer", json={"inputs": inputs})
    assert response.status_code == 200
    return float(response.json()["outputs"][0]["data"][0])


def test_an_own_model_replaces_the_shipped_one(serve: Serve, echo_app: App, tmp_path: Path) -> None:
    loaded_versions: list[int] = []

    def predictor(artifacts: object, device: str) -> Echo:
        loaded_versions.extend(artifact.manifest.version for artifact in artifacts)  # type: ignore[attr-defined]
        return echo_app.predictor([], device)  # type: ignore[return-value]

    write_artifact(tmp_path / "models", 7)
    settings = Settings(store=tmp_path / "own", registry=tmp_path / "models", device="cpu", warm=False)
    with TestClient(create_app(settings, {"echo": replace(echo_app, predictor=predictor)})) as client:
        case = client.post("/api/echo/predict", files=[csv(1)]).json()
        assert case["artifact"] == {"name": "echo", "version": 7} and loaded_versions == [7]
        assert client.get("/v2/models/echo").json()["versions"] == ["7"]
        assert infer(client, "echo") == 7
        assert client.get("/v2/models/echo/versions/2").status_code == 404
        assert "echo version 7" in client.get("/echo").text
    assert serve().get("/v2/models/echo").json()["versions"] == ["1", "2"]


def test_an_own_model_of_another_name_is_served_as_well(serve: Serve, tmp_path: Path) -> None:
    write_artifact(tmp_path / "elsewhere", 1)
    (tmp_path / "models").mkdir()
    (tmp_path / "elsewhere" / "echo").rename(tmp_path / "models" / "parrot")
    manifest = tmp_path / "models" / "parrot" / "1" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"name": "echo"', '"name": "parrot"'))
    client = serve(registry=tmp_path / "models")
    assert client.get("/v2").json()["models"] == ["echo", "parrot"]
    assert infer(client, "parrot") == 1 and infer(client, "echo") == 2
    assert client.post("/api/echo/predict", files=[csv(1)]).json()["artifact"] == {"name": "echo", "version": 2}


def test_a_case_names_the_model_that_computed_it_even_after_another_export(serve: Serve, echo_app: App) -> None:
    client = serve()
    assert client.post("/api/echo/predict", files=[csv(1)]).json()["artifact"] == {"name": "echo", "version": 2}
    write_artifact(echo_app.weights, 3)
    assert client.post("/api/echo/predict", files=[csv(1)]).json()["artifact"] == {"name": "echo", "version": 2}
    (echo_app.weights / "echo" / "4").mkdir()
    (echo_app.weights / "echo" / "4" / "manifest.json").write_text("{")
    assert client.post("/api/echo/predict", files=[csv(1)]).json()["artifact"] == {"name": "echo", "version": 2}
    assert client.get("/healthz").json()["apps"]["echo"]["artifacts"] == [{"name": "echo", "version": 2}]
    assert "echo version 2" in client.get("/echo").text


def test_a_model_of_another_application_is_not_used(serve: Serve, tmp_path: Path) -> None:
    write_artifact(tmp_path / "models", 1)
    manifest = tmp_path / "models" / "echo" / "1" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"app": "echo"', '"app": "weather"'))
    response = serve(registry=tmp_path / "models").post("/api/echo/predict", files=[csv(1)])
    assert response.status_code == 503 and "a model of weather, not of echo" in response.json()["detail"]


def test_a_missing_registry_is_refused(serve: Serve, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="not a folder; `trivium export"):
        serve(registry=tmp_path / "nowhere")


def test_a_registry_lists_names_and_versions(tmp_path: Path) -> None:
    for version in (2, 10, 1):
        write_artifact(tmp_path, version)
    (tmp_path / "echo" / "latest").mkdir()
    (tmp_path / "empty").mkdir()
    registry = Registry(tmp_path)
    assert registry.names() == ["echo"] and list(registry.versions("echo")) == [1, 2, 10]
    assert registry.newest("echo").manifest.version == 10 and registry.versions("empty") == {}
