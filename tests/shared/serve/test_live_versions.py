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
    answer = client.post(f"{MODELS}/echo/promote", json={"version": version})
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["versions"])


def predicting(client: TestClient) -> int:
    """The version that the application predicts with."""
    answer = client.post(PREDICT, files=[csv(1)])
    assert answer.status_code == 200, answer.text
    return int(answer.json()["artifact"]["version"])


def inferring(client: TestClient) -> int:
    """The version that answers a request of the protocol without a version."""
    answer = client.post(INFER, json={"inputs": [X, INDEX]})
    assert answer.status_code == 200, answer.text
    return int(answer.json()["model_version"])


def test_the_newest_is_live_until_another_is_promoted_and_it_can_be_rolled_back(echo_client: TestClient) -> None:
    assert stages(echo_client) == {"1": "retired", "2": "live"}
    assert (predicting(echo_client), inferring(echo_client)) == (2, 2)
    assert promote(echo_client, 1) == {"1": "live", "2": "retired"}
    assert (predicting(echo_client), inferring(echo_client)) == (1, 1)
    assert echo_client.post(f"{MODELS}/echo/rollback").json()["versions"] == {"1": "retired", "2": "live"}
    assert (predicting(echo_client), inferring(echo_client)) == (2, 2)
    again = echo_client.post(f"{MODELS}/echo/rollback")
    assert again.status_code == 409 and "no version" in again.json()["detail"]


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
    assert "3" not in [one["version"] for one in index], "its workers have ended"
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
    back = echo_client.post(f"{MODELS}/echo/rollback")
    assert back.status_code == 200 and back.json()["versions"] == {"1": "retired", "2": "live", "3": "retired"}
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
    refused = echo_client.post(f"{MODELS}/echo/rollback")
    assert refused.status_code == 409 and "promote" in refused.json()["detail"]
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
            assert not any(one.done() for one in before)
        finally:
            echo.gate.set()
        assert [one.result(20) for one in (*before, *after)] == [2] * 4 + [1] * 4


def test_no_request_is_dropped_while_versions_change(echo_client: TestClient, tmp_path: Path) -> None:
    assert predicting(echo_client) == inferring(echo_client) == 2
    write_artifact(tmp_path / "echo" / "weights", 3)
    ended, seen = threading.Event(), []

    def load(ask: Callable[[TestClient], int]) -> int:
        number = 0
        while not ended.is_set():
            seen.append(ask(echo_client))  # fails if the answer is not 200
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
        assert all(one.result(30) > 0 for one in loads)
    assert set(seen) >= {1, 2, 3} - {2} and (predicting(echo_client), inferring(echo_client)) == (1, 1)


def test_a_version_that_cannot_be_loaded_does_not_become_live(echo_client: TestClient, tmp_path: Path) -> None:
    assert predicting(echo_client) == 2
    write_artifact(tmp_path / "echo" / "weights", 3)
    network = next((tmp_path / "echo" / "weights" / "echo" / "3").glob("*.onnx"))
    network.write_bytes(network.read_bytes()[:-1] + b"x")
    refused = echo_client.post(f"{MODELS}/echo/promote", json={"version": 3})
    assert refused.status_code == 422 and refused.json()["detail"]
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
    answer = echo_client.post(f"{MODELS}/{place}", json=body)
    assert answer.status_code == status and answer.json()["detail"]


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
        refused = client.post(first, json={"inputs": [X, INDEX]})
        assert refused.status_code == 404 and "is retired" in refused.text and "promote" in refused.text
        assert client.post("/v2/repository/models/echo/load").status_code == 200
        index = client.post("/v2/repository/index", json={"ready": True}).json()
        assert [one["version"] for one in index if one["name"] == "echo"] == ["2"]
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
    with TestClient(first) as one, TestClient(second) as two:
        assert (predicting(one), predicting(two)) == (2, 2)
        promote(one, 1)
        assert two.portal is not None
        two.portal.call(second.state.live_versions.follow_once)
        assert (predicting(two), inferring(two)) == (1, 1)
        case = one.post(PREDICT, files=[csv(4)]).json()
        assert two.get(f"/api/echo/cases/{case['case']}").json() == case
        assert one.post(f"{MODELS}/echo/rollback").status_code == 200
        two.portal.call(second.state.live_versions.follow_once)
        assert (predicting(two), stages(two)) == (2, {"1": "retired", "2": "live"})
        first = "/v2/models/echo/versions/1/infer"
        assert two.post(first, json={"inputs": [X, INDEX]}).status_code == 200
        assert one.post(f"{MODELS}/echo/retire", json={"version": 1}).status_code == 200
        two.portal.call(second.state.live_versions.follow_once)
        assert two.post(first, json={"inputs": [X, INDEX]}).status_code == 404


def test_the_command_controls_a_running_server(
    settings: Settings, echo_app: App, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(create_app(settings.model_copy(update={"hosts": None}), {"echo": echo_app})) as address:

        def said(*words: str) -> tuple[int, str]:
            code = cli.main(["versions", *words, "--server", address])
            captured = capsys.readouterr()
            return code, " ".join((captured.out + captured.err).split())

        assert said() == (0, ANY) and "live" in said("echo")[1]
        code, text = said("echo", "--promote", "1")
        assert code == 0 and text.index("live") < text.index("retired")
        assert said("echo", "--roll-back")[0] == 0 and said("echo", "--reload")[0] == 0
        code, text = said("echo", "--roll-back")
        assert code == 2 and "no version of 'echo' was live" in text
        assert said("none")[0] == 2 and said("--reload")[0] == 2 and said("echo", "--reload", "--roll-back")[0] == 2
    assert cli.main(["versions", "--server", address]) == 2 and "is the server running" in capsys.readouterr().err
