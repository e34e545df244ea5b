"""Partner models, such as a second stage, which only serve together with another model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from shared.app import App
from shared.serve.app import create_app
from shared.serve.settings import Settings
from tests.shared.serve.echo import Echo, csv, write_artifact

OF = {1: 1, 2: 1, 3: 2}
"""The version of echo that each version of the second stage was trained for."""


class Server:
    """A client, and the artifacts that the predictor was last loaded with."""

    def __init__(self, client: TestClient) -> None:
        self.client, self.given = client, list[str]()

    def predicting(self) -> list[str]:
        assert self.client.post("/api/echo/predict", files=[csv(1)]).status_code == 200
        return self.given

    def change(self, model: str, call: str, version: int) -> Any:
        return self.client.post(f"/api/models/{model}/{call}", json={"version": version})

    def stages(self, model: str) -> dict[str, str]:
        models = self.client.get("/api/models").json()["models"]
        return dict(next(entry["versions"] for entry in models if entry["model"] == model))


@pytest.fixture
def server(settings: Settings, echo_app: App, tmp_path: Path) -> Iterator[Server]:
    for version in OF:
        write_artifact(tmp_path / "echo" / "weights", version, name="second")

    def predictor(artifacts: Any, device: str) -> Echo:
        partner_server.given = [f"{artifact.manifest.name} {artifact.manifest.version}" for artifact in artifacts]
        return echo_app.predictor([], device)  # type: ignore[return-value]

    app = replace(
        echo_app,
        models=("second", "echo"),
        partners={"second": lambda partner, model: OF[partner.manifest.version] == model.manifest.version},
        predictor=predictor,
    )
    with TestClient(create_app(settings, {"echo": app})) as client:
        partner_server = Server(client)
        yield partner_server


def test_a_retired_partner_is_not_used_even_if_the_live_one_belongs_to_another_model(server: Server) -> None:
    assert server.change("echo", "promote", 1).status_code == 200
    assert server.predicting() == ["echo 1", "second 2"], "the newest for echo 1"
    assert server.stages("second") == {"1": "retired", "2": "live", "3": "candidate"}
    assert server.change("second", "retire", 2).status_code == 200
    assert server.predicting() == ["echo 1", "second 1"]
    assert server.stages("second") == {"1": "live", "2": "retired", "3": "candidate"}
    assert server.change("second", "retire", 1).status_code == 200
    assert server.predicting() == ["echo 1"], "the partner is optional"
    assert "live" not in server.stages("second").values()
    assert server.change("echo", "retire", 1).status_code == 409, "the main model is not optional"
    assert server.change("second", "promote", 1).status_code == 200
    assert server.predicting() == ["echo 1", "second 1"]


def test_an_altered_partner_is_refused_until_it_is_retired(server: Server, tmp_path: Path) -> None:
    network = next((tmp_path / "echo" / "weights" / "second" / "3").glob("*.onnx"))
    network.write_bytes(network.read_bytes()[:-1] + b"x")
    response = server.client.post("/api/echo/predict", files=[csv(1)])
    assert response.status_code == 503
    assert f"{network} is missing or differs" in response.json()["detail"]
    assert "trivium versions second --retire 3" in response.json()["detail"]
    assert server.stages("second")["3"] == "live"
    assert server.change("second", "retire", 3).json()["versions"] == {"1": "retired", "2": "live", "3": "retired"}
    assert server.predicting() == ["echo 2"]


def test_a_partner_is_not_promoted_before_the_version_that_it_belongs_to(server: Server) -> None:
    assert server.change("echo", "promote", 1).status_code == 200
    assert server.predicting() == ["echo 1", "second 2"]
    refused = server.change("second", "promote", 3)
    assert refused.status_code == 409 and "promote the model that it belongs to first" in refused.json()["detail"]
    assert server.predicting() == ["echo 1", "second 2"] and server.stages("second")["2"] == "live"
    assert server.change("second", "promote", 1).status_code == 200
    assert server.predicting() == ["echo 1", "second 1"], "a promoted version takes precedence over a newer one"
    assert server.change("echo", "promote", 2).status_code == 200
    assert server.predicting() == ["echo 2", "second 3"] and server.stages("second")["3"] == "live"
    assert server.change("second", "promote", 3).status_code == 200
