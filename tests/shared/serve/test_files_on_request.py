"""Files are generated only on request, under the addresses in the answer."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from shared.deploy.predictor import Request, answer
from shared.serve.settings import Settings
from shared.store.cases import CaseStore
from shared.store.records import Case
from tests.shared.serve.echo import Echo, csv, until

PICTURE = b"\x89PNG[2.0, 4.0]2.0\n4.0"


def ask(client: TestClient) -> dict[str, Any]:
    found = client.post("/api/echo/predict", files=[csv(1, 2)], data={"later": "yes"})
    assert found.status_code == 200, found.text
    case: dict[str, Any] = found.json()
    return case


def folder(settings: Settings, case: dict[str, Any]) -> Path:
    return settings.store / "cases" / case["case"]


def test_files_are_generated_once_on_request_and_their_sources_are_deleted(
    echo_client: TestClient, echo: Echo, settings: Settings
) -> None:
    case = ask(echo_client)
    home = folder(settings, case)
    assert echo.made == [] and list(case["files"]) == ["result.json", "doubled.csv", "sum.txt"]
    assert {path.name for path in home.iterdir()} == {"result.json", "doubled.csv", ".later.json", ".source-numbers"}
    for _ in range(2):
        assert echo_client.get(case["files"]["sum.txt"]).text == "6.0"
    assert echo.made == ["sum.txt"] and (home / ".source-numbers").is_file(), "the picture still needs it"
    picture = echo_client.get(case["picture"])
    assert picture.content == PICTURE and picture.headers["content-type"] == "image/png"
    assert echo.made == ["sum.txt", "picture.png"] and not (home / ".source-numbers").exists()
    assert echo_client.get(case["picture"]).content == PICTURE
    assert len(echo.made) == 2 and {path.stat().st_mode & 0o777 for path in home.iterdir()} == {0o600}
    assert echo_client.get(f"/api/echo/cases/{case['case']}/files/.source-numbers").status_code == 404
    assert echo_client.get(f"/api/echo/cases/{case['case']}").json()["result"] == case["result"]


def test_the_next_server_generates_files_and_the_store_counts_their_size(
    serve: Callable[..., TestClient], settings: Settings
) -> None:
    first = serve()
    case = ask(first)
    first.__exit__(None, None, None)
    second = serve()
    assert second.get(case["picture"]).content == PICTURE
    second.__exit__(None, None, None)
    store = CaseStore(settings.store)
    used_bytes = sum(path.stat().st_size for path in folder(settings, case).iterdir())
    assert store.used_bytes("echo") == used_bytes > len(PICTURE)
    store.close()


def test_a_deleted_case_has_no_files(echo_client: TestClient, echo: Echo) -> None:
    case = ask(echo_client)
    assert echo_client.delete(f"/api/echo/cases/{case['case']}").status_code == 204
    assert echo_client.get(case["picture"]).status_code == 404 and echo.made == []


@pytest.mark.parametrize("moment", ["before its sources are looked up", "before its sources are read"])
def test_a_file_that_another_request_has_just_generated_is_sent(
    echo_client: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    case = ask(echo_client)
    assert echo_client.get(case["files"]["sum.txt"]).status_code == 200  # the picture is the last file to be generated
    find_sources = CaseStore.sources

    def keep_meanwhile(store: CaseStore, case: Case, name: str) -> dict[str, Path | bytes] | None:
        """The other request keeps the picture, which deletes its sources."""
        found = find_sources(store, case, name)
        store.keep(case, name, PICTURE)
        return find_sources(store, case, name) if moment == "before its sources are looked up" else found

    monkeypatch.setattr(CaseStore, "sources", keep_meanwhile)
    picture = echo_client.get(case["picture"])
    assert (picture.status_code, picture.content) == (200, PICTURE)
    assert not (folder(settings, case) / ".source-numbers").exists()


def test_generating_files_is_queued_like_requests_and_refused_without_room(
    serve: Callable[..., TestClient], echo: Echo
) -> None:
    client = serve(queue_length=1, max_batch=1, deadline_s=60)
    case = ask(client)
    echo.gate.clear()
    echo.entered.clear()
    with ThreadPoolExecutor(2) as pool:
        computing = pool.submit(client.post, "/api/echo/predict", files=[csv(1)])
        until(echo.entered.is_set)
        waiting = pool.submit(client.get, case["picture"])
        until(lambda: 'pending_request_count{model="echo",version="2"} 1.0' in client.get("/metrics").text)
        refused = client.get(case["files"]["sum.txt"])
        made = list(echo.made)
        echo.gate.set()
        assert computing.result().status_code == 200 and waiting.result().content == PICTURE
    assert refused.status_code == 503 and "as many requests" in refused.json()["detail"]
    assert made == [] and echo.made == ["picture.png"]


def test_on_a_full_disk_files_are_sent_but_not_kept(
    echo_client: TestClient, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    case = ask(echo_client)
    monkeypatch.setattr("shared.store.later_files.write_private", full)
    assert [echo_client.get(case["picture"]).content for _ in range(2)] == [PICTURE, PICTURE]
    assert echo.made == ["picture.png", "picture.png"]
    monkeypatch.setattr("shared.store.cases.write_private", full)
    unkept = ask(echo_client)
    assert "not kept" in unkept["remark"]
    assert echo_client.get(unkept["picture"]).content == PICTURE
    assert echo_client.get(unkept["files"]["doubled.csv"]).text == "2.0\n4.0"


def test_without_a_server_all_files_are_written_at_once(tmp_path: Path, echo: Echo) -> None:
    (tmp_path / "numbers.csv").write_text("1,2")
    found = answer(echo, Request(files=(tmp_path / "numbers.csv",), options={"later": "yes"}), echo)
    assert found.picture == PICTURE and found.files["sum.txt"] == b"6.0" and found.later is None
