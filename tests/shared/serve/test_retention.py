"""The retention limits of cases, and the deletion of a case."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from shared.app import App
from shared.serve.app import create_app
from shared.serve.settings import Settings
from shared.store import cases
from shared.store.records import Case
from tests.shared.serve.echo import csv, until

Serve = Callable[..., TestClient]
PREDICT, CASES = "/api/echo/predict", "/api/echo/cases"
DAY_NS = 86_400 * 10**9


def case_ids(client: TestClient) -> list[str]:
    return [case["case"] for case in client.get(CASES).json()["cases"]]


def folders(settings: Settings) -> set[str]:
    return {path.name for path in (settings.store / "cases").iterdir()}


def ask(client: TestClient, number: int) -> str:
    response = client.post(PREDICT, files=[csv(number)])
    assert response.status_code == 200, response.text
    return str(response.json()["case"])


def test_a_case_is_deleted_with_its_files(echo_client: TestClient, settings: Settings) -> None:
    first, second = ask(echo_client, 1), ask(echo_client, 2)
    response = echo_client.delete(f"{CASES}/{first}")
    assert response.status_code == 204 and response.content == b""
    assert case_ids(echo_client) == [second] and folders(settings) == {second}
    for path in (f"{CASES}/{first}", f"{CASES}/{first}/files/result.json", f"{CASES}/{first}/picture.png"):
        assert echo_client.get(path).status_code == 404
    second_deletion = echo_client.delete(f"{CASES}/{first}")
    assert second_deletion.status_code == 404 and "has no case" in second_deletion.json()["detail"]


def test_another_site_cannot_delete_a_case(echo_client: TestClient) -> None:
    case = ask(echo_client, 1)
    assert echo_client.delete(f"{CASES}/{case}", headers={"Origin": "https://evil.example"}).status_code == 403
    assert case_ids(echo_client) == [case]


def test_a_clock_that_jumps_ahead_by_years_deletes_nothing(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client, now = serve(keep_days=2, keep_cases=100), time.time_ns
    asked_cases = [ask(client, 1)]
    with monkeypatch.context() as wrong:
        wrong.setattr(cases.time, "time_ns", lambda: now() + 20 * 365 * DAY_NS)
        asked_cases += [ask(client, 2), ask(client, 3)]
        assert set(case_ids(client)) == set(asked_cases)
        assert caplog.text.count("jumped ahead by over a year") == 1 and "TRIVIUM_KEEP_DAYS" in caplog.text
    with monkeypatch.context() as later:
        later.setattr(cases.time, "time_ns", lambda: now() + 3 * DAY_NS)
        last = ask(client, 4)
        assert set(case_ids(client)) == {*asked_cases[1:], last}, "after a jump of three days cases are deleted by age"


def test_the_newest_cases_are_kept(serve: Serve, settings: Settings) -> None:
    client = serve(keep_cases=2)
    asked_cases = [ask(client, number) for number in range(5)]
    assert case_ids(client) == asked_cases[:-3:-1] and folders(settings) == set(asked_cases[-2:])


def test_old_cases_are_deleted_when_the_server_starts(
    settings: Settings, echo_app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time_ns
    with TestClient(create_app(settings, {"echo": echo_app})) as client:
        with monkeypatch.context() as earlier:
            earlier.setattr(cases.time, "time_ns", lambda: now() - 3 * DAY_NS)
            old = ask(client, 1)
        new = ask(client, 2)
        assert case_ids(client) == [new, old]
    changed = settings.model_copy(update={"keep_days": 2})
    with TestClient(create_app(changed, {"echo": echo_app})) as client:
        until(lambda: case_ids(client) == [new] and folders(settings) == {new})


def test_a_case_above_the_byte_limit_is_sent_with_a_remark_and_removes_no_other(
    serve: Serve, settings: Settings
) -> None:
    small = ask(client := serve(), 1)
    size = client.app.state.store.used_bytes("echo")  # type: ignore[attr-defined]
    client.__exit__(None, None, None)
    client = serve(keep_bytes=size + 100)
    answer = client.post(PREDICT, files=[csv(*range(100))]).json()
    assert "is not kept: it takes 0.0 MB" in answer["remark"] and "TRIVIUM_KEEP_BYTES" in answer["remark"]
    assert client.get(answer["picture"]).status_code == 200, "as long as the server runs"
    assert client.get(answer["files"]["doubled.csv"]).text.startswith("0.0")
    assert case_ids(client) == [small] and folders(settings) == {small}
    assert ask(client, 2) == case_ids(client)[0] and len(case_ids(client)) == 1, (
        "the oldest case is deleted for one that fits"
    )


@pytest.mark.parametrize("file", ["", "/files/result.json", "/picture.png"])
def test_a_case_that_is_deleted_during_a_request_is_404(
    file: str, echo_client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, find = ask(echo_client, 1), cases.CaseStore.file
    assert echo_client.get(f"{CASES}/{case}/picture.png").status_code == 200, "generated, and stored from now on"

    def deleted_meanwhile(store: cases.CaseStore, stored_case: Case, name: str) -> Path | None:
        found = find(store, stored_case, name)
        store.remove(stored_case)
        return found

    monkeypatch.setattr(cases.CaseStore, "file", deleted_meanwhile)
    response = echo_client.get(f"{CASES}/{case}{file}")
    assert response.status_code == 404 and "is gone from the store" in response.json()["detail"]
