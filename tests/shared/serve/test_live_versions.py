"""Versions are promoted, rolled back and reloaded during requests, and no request is dropped."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from fastapi.testclient import TestClient

from shared import cli
from shared.app import App
from shared.serve.app import create_app
from shared.serve.settings import Settings
from tests.conftest import serving
from tests.shared.postgresql import PostgreSQL
from tests.shared.serve.echo import Echo, csv, until, write_artifact
from tests.shared.serve.test_oip import INDEX, INFER, X

PREDICT, MODELS = "/api/echo/predict", "/api/models"
Serve = Callable[..., TestClient]


def stages(client: TestClient) -> dict[str, str]:
    (model,) = client.get(MODELS).json()["models"]
    assert model["model"] == "echo"
    return dict(model["versions"])


def promote(client: TestClient, version: int) -> dict[str, str]:
    response = client.post(f"{MODELS}/echo/promote", json={"version": version})
    assert response.status_code == 200, response.text
    return dict(response.json()["versions"])


def predicting(client: TestClient) -> int:
    """The version that the application predicts with."""
    response = client.post(PREDICT, files=[csv(1)])
    assert response.status_code == 200, response.text
    return int(response.json()["artifact"]["version"])


def inferring(client: TestClient) -> int:
    """The version that answers a request of the protocol without a version."""
    response = client.post(INFER, json={"inputs": [X, INDEX]})
    assert response.status_code == 200, response.text
    return int(response.json()["model_version"])


def test_the_newest_is_live_until_another_is_promoted_and_it_can_be_rolled_back(echo_client: TestClient) -> None:
    assert stages(echo_client) == {"1": "retired", "2": "live"}
    assert (predicting(echo_client), inferring(echo_client)) == (2, 2)
    assert promote(echo_client, 1) == {"1": "live", "2": "retired"}
    assert (predicting(echo_client), inferring(echo_client)) == (1, 1)
    assert echo_client.post(f"{MODELS}/echo/rollback").json()["versions"] == {"1": "retired", "2": "live"}
    assert (predicting(echo_client), inferring(echo_client)) == (2, 2)
    second_rollback = echo_client.post(f"{MODELS}/echo/rollback")
    assert second_rollback.status_code == 409 and "no version" in second_rollback.json()["detail"]


def test_a_version_is_retired_unless_it_is_live(echo_client: TestClient, tmp_path: Path) -> None:
    def retire(version: int) -> Any:
        return echo_client.post(f"{MODELS}/echo/retire", json={"version": version})

    write_artifact(tmp_path / "echo" / "weights", 3)
    promote(echo_client, 2)
    third = "/v2/models/echo/versions/3/infer"
    echo_client.post(f"{MODELS}/echo/reload")
    assert echo_client.post(third, json={"inputs": [X, INDEX]}).status_code == 200
    assert retire(3).json()["versions"] == {"1": "retired", "2": "live", "3": "retired"}
    index = echo_client.post("/v2/repository/index", json={"ready": True}).json()
    assert "3" not in [entry["version"] for entry in index], "its workers have ended"
    assert echo_client.post(third, json={"inputs": [X, INDEX]}).status_code == 404
    assert retire(2).status_code == 409 and "promote another" in retire(2).json()["detail"]
    assert retire(9).status_code == 404
    echo_client.post(f"{MODELS}/echo/reload")
    assert (predicting(echo_client), inferring(echo_client)) == (2, 2), "a newer retired version stays retired"
    assert promote(echo_client, 3)["3"] == "live"
    assert retire(2).json()["versions"]["2"] == "retired"
    assert echo_client.post(f"{MODELS}/echo/rollback").status_code == 409, "the previous version is retired"


def test_a_new_version_is_a_candidate_that_answers_requests_for_it(echo_client: TestClient, tmp_path: Path) -> None:
    promote(echo_client, 2)
    write_artifact(tmp_path / "echo" / "weights", 3)
    answer = echo_client.post(f"{MODELS}/echo/reload").json()
    assert answer["versions"] == {"1": "retired", "2": "live", "3": "candidate"}
    assert (predicting(echo_client), inferring(echo_client)) == (2, 2)
    tried = echo_client.post("/v2/models/echo/versions/3/infer", json={"inputs": [X, INDEX]}).json()
    assert tried["model_version"] == "3" and tried["outputs"][0]["data"] == [6.0, -1.0]
    assert promote(echo_client, 3)["3"] == "live"
    assert (predicting(echo_client), inferring(echo_client)) == (3, 3)


def test_without_a_promotion_a_reload_makes_the_newest_version_live(echo_client: TestClient, tmp_path: Path) -> None:
    assert predicting(echo_client) == 2
    write_artifact(tmp_path / "echo" / "weights", 3)
    assert predicting(echo_client) == 2
    assert echo_client.post(f"{MODELS}/echo/reload").json()["versions"]["3"] == "live"
    assert (predicting(echo_client), inferring(echo_client)) == (3, 3)
    rolled_back = echo_client.post(f"{MODELS}/echo/rollback")
    assert rolled_back.status_code == 200 and rolled_back.json()["versions"] == {
        "1": "retired",
        "2": "live",
        "3": "retired",
    }
    assert (predicting(echo_client), inferring(echo_client)) == (2, 2)
    echo_client.post(f"{MODELS}/echo/reload")
    assert predicting(echo_client) == 2, "the version that was rolled back to stays live"


def test_a_rollback_after_a_reload_does_not_return_to_a_retired_version(
    echo_client: TestClient, tmp_path: Path
) -> None:
    assert predicting(echo_client) == 2
    write_artifact(tmp_path / "echo" / "weights", 3)
    echo_client.post(f"{MODELS}/echo/reload")
    assert echo_client.post(f"{MODELS}/echo/retire", json={"version": 2}).status_code == 200
    response = echo_client.post(f"{MODELS}/echo/rollback")
    assert response.status_code == 409 and "promote" in response.json()["detail"]
    assert predicting(echo_client) == 3


def test_requests_begun_with_the_old_version_are_answered_by_it(serve: Serve, echo: Echo) -> None:
    client = serve(max_batch=1)
    assert predicting(client) == 2
    echo.gate.clear()
    echo.entered.clear()
    with ThreadPoolExecutor(8) as pool:
        try:
            before = [pool.submit(predicting, client) for _ in range(4)]
            until(echo.entered.is_set)
            until(lambda: 'pending_request_count{model="echo",version="2"} 3.0' in client.get("/metrics").text)
            promote(client, 1)
            after = [pool.submit(predicting, client) for _ in range(4)]
            assert not any(future.done() for future in before)
        finally:
            echo.gate.set()
        assert [future.result(20) for future in (*before, *after)] == [2] * 4 + [1] * 4


def test_no_request_is_dropped_while_versions_change(echo_client: TestClient, tmp_path: Path) -> None:
    assert predicting(echo_client) == inferring(echo_client) == 2
    write_artifact(tmp_path / "echo" / "weights", 3)
    ended, used_versions = threading.Event(), []

    def load(ask: Callable[[TestClient], int]) -> int:
        number = 0
        while not ended.is_set():
            used_versions.append(ask(echo_client))  # fails if the answer is not 200
            number += 1
        return number

    with ThreadPoolExecutor(4) as pool:
        loads = [pool.submit(load, ask) for ask in (predicting, inferring) * 2]
        try:
            for version in (1, 3, 2):
                promote(echo_client, version)
            for call in ("rollback", "reload", "rollback"):
                assert echo_client.post(f"{MODELS}/echo/{call}").status_code == 200
        finally:
            ended.set()
        assert all(future.result(30) > 0 for future in loads)
    assert set(used_versions) >= {1, 2, 3} - {2} and (predicting(echo_client), inferring(echo_client)) == (1, 1)


def test_a_version_that_cannot_be_loaded_does_not_become_live(echo_client: TestClient, tmp_path: Path) -> None:
    assert predicting(echo_client) == 2
    write_artifact(tmp_path / "echo" / "weights", 3)
    network = next((tmp_path / "echo" / "weights" / "echo" / "3").glob("*.onnx"))
    network.write_bytes(network.read_bytes()[:-1] + b"x")
    response = echo_client.post(f"{MODELS}/echo/promote", json={"version": 3})
    assert response.status_code == 422 and response.json()["detail"]
    assert stages(echo_client) == {"1": "retired", "2": "live", "3": "candidate"}
    assert (predicting(echo_client), inferring(echo_client)) == (2, 2)
    assert echo_client.post(f"{MODELS}/echo/rollback").status_code == 409


@pytest.mark.parametrize(
    ("place", "body", "status"),
    [
        ("none/promote", {"version": 1}, 404),
        ("echo/promote", {"version": 9}, 404),
        ("echo/promote", {"version": "1"}, 422),
        ("echo/rollback", None, 409),
        ("none/rollback", None, 404),
        ("none/reload", None, 404),
    ],
)
def test_unknown_models_and_versions_are_refused(echo_client: TestClient, place: str, body: Any, status: int) -> None:
    response = echo_client.post(f"{MODELS}/{place}", json=body)
    assert response.status_code == status and response.json()["detail"]


def test_the_live_version_survives_a_restart(settings: Settings, echo_app: App) -> None:
    for version in (1, None):
        with TestClient(create_app(settings, {"echo": echo_app})) as client:
            if version is not None:
                promote(client, version)
            assert (predicting(client), inferring(client)) == (1, 1)


def test_a_retired_version_has_no_workers_after_a_restart_and_answers_when_promoted(
    settings: Settings, echo_app: App
) -> None:
    first = "/v2/models/echo/versions/1/infer"
    with TestClient(create_app(settings, {"echo": echo_app})) as client:
        assert client.post(f"{MODELS}/echo/retire", json={"version": 1}).status_code == 200
    with TestClient(create_app(settings.model_copy(update={"warm": True}), {"echo": echo_app})) as client:
        until(lambda: client.get("/v2/health/ready").status_code == 200)
        response = client.post(first, json={"inputs": [X, INDEX]})
        assert response.status_code == 404 and "is retired" in response.text and "promote" in response.text
        assert client.post("/v2/repository/models/echo/load").status_code == 200
        index = client.post("/v2/repository/index", json={"ready": True}).json()
        assert [entry["version"] for entry in index if entry["name"] == "echo"] == ["2"]
        assert promote(client, 1) == {"1": "live", "2": "retired"}
        assert inferring(client) == 1


def test_a_promoted_retired_version_answers_even_if_no_other_is_loaded(echo_client: TestClient) -> None:
    echo_client.post(f"{MODELS}/echo/retire", json={"version": 1})
    promote(echo_client, 1)
    assert inferring(echo_client) == 1


def test_a_second_server_on_the_same_postgresql_follows_promotions(
    settings: Settings, echo_app: App, postgresql: PostgreSQL
) -> None:
    shared = settings.model_copy(update={"store_url": postgresql.database()})
    first, second = (create_app(shared, {"echo": echo_app}) for _ in range(2))
    with TestClient(first) as first_client, TestClient(second) as second_client:
        assert (predicting(first_client), predicting(second_client)) == (2, 2)
        promote(first_client, 1)
        assert second_client.portal is not None
        second_client.portal.call(second.state.live_versions.follow_once)
        assert (predicting(second_client), inferring(second_client)) == (1, 1)
        case = first_client.post(PREDICT, files=[csv(4)]).json()
        assert second_client.get(f"/api/echo/cases/{case['case']}").json() == case
        assert first_client.post(f"{MODELS}/echo/rollback").status_code == 200
        second_client.portal.call(second.state.live_versions.follow_once)
        assert (predicting(second_client), stages(second_client)) == (2, {"1": "retired", "2": "live"})
        first = "/v2/models/echo/versions/1/infer"
        assert second_client.post(first, json={"inputs": [X, INDEX]}).status_code == 200
        assert first_client.post(f"{MODELS}/echo/retire", json={"version": 1}).status_code == 200
        second_client.portal.call(second.state.live_versions.follow_once)
        assert second_client.post(first, json={"inputs": [X, INDEX]}).status_code == 404


def test_the_command_controls_a_running_server(
    settings: Settings, echo_app: App, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(create_app(settings.model_copy(update={"hosts": None}), {"echo": echo_app})) as address:

        def run_versions(*words: str) -> tuple[int, str]:
            code = cli.main(["versions", *words, "--server", address])
            captured = capsys.readouterr()
            return code, " ".join((captured.out + captured.err).split())

        assert run_versions() == (0, ANY) and "live" in run_versions("echo")[1]
        code, text = run_versions("echo", "--promote", "1")
        assert code == 0 and text.index("live") < text.index("retired")
        assert run_versions("echo", "--roll-back")[0] == 0 and run_versions("echo", "--reload")[0] == 0
        code, text = run_versions("echo", "--roll-back")
        assert code == 2 and "no version of 'echo' was live" in text
        assert (
            run_versions("none")[0] == 2
            and run_versions("--reload")[0] == 2
            and run_versions("echo", "--reload", "--roll-back")[0] == 2
        )
    assert cli.main(["versions", "--server", address]) == 2 and "is the server running" in capsys.readouterr().err
