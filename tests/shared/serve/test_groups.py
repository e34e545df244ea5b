"""Groups of keys: a key of a group sees only the cases and jobs of that group, and no sign of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from shared import cli
from shared.app import App, installed
from shared.serve.app import create_app
from shared.serve.settings import Settings
from shared.store.backup import backup, restore
from shared.store.cases import CaseStore
from shared.store.keys import Keys
from shared.store.records import Outputs
from tests.shared.serve.echo import Echo, csv, until

PREDICT, CASES, JOBS = "/api/echo/predict", "/api/echo/cases", "/api/echo/jobs"
Header = dict[str, str]


@pytest.fixture
def keyed(serve: Callable[..., TestClient]) -> TestClient:
    """A client, without a key, of a server that requires one."""
    return serve(require_key=True)


def add(client: TestClient, name: str, group: str | None = None) -> Header:
    """The header of a new user's key."""
    return {"X-Api-Key": Keys(client.app.state.store.engine).add(name, "user", group)}  # type: ignore[attr-defined]


@pytest.fixture
def desk(keyed: TestClient) -> Header:
    return add(keyed, "desk-1", "desk")


@pytest.fixture
def colleague(keyed: TestClient) -> Header:
    """Another key of the same group."""
    return add(keyed, "desk-2", "desk")


@pytest.fixture
def stranger(keyed: TestClient) -> Header:
    """A key of another group."""
    return add(keyed, "treasury-1", "treasury")


@pytest.fixture
def everyone(keyed: TestClient) -> Header:
    """A key without a group, which sees everything."""
    return add(keyed, "anna")


def predicted(client: TestClient, header: Header) -> str:
    """The identifier of a case submitted with the key."""
    response = client.post(PREDICT, files=[csv(1)], headers=header)
    assert response.status_code == 200, response.text
    found: str = response.json()["case"]
    return found


def done(client: TestClient, header: Header, **extra_headers: str) -> dict[str, str]:
    """A finished job submitted with the key."""
    response = client.post(JOBS, files=[csv(2)], headers={**header, **extra_headers})
    assert response.status_code == 202, response.text
    url = response.json()["url"]
    until(lambda: client.get(url, headers=header).json()["state"] == "done")
    found: dict[str, str] = client.get(url, headers=header).json()
    return found


def cases(client: TestClient, header: Header) -> list[str]:
    return [case["case"] for case in client.get(CASES, headers=header).json()["cases"]]


def jobs(client: TestClient, header: Header) -> list[str]:
    return [job["job"] for job in client.get(JOBS, headers=header).json()["jobs"]]


def waiting(client: TestClient, number: int) -> bool:
    """Whether ``number`` requests wait for a worker."""
    found: bool = client.app.state.services["echo"].model.value.metrics.waiting() == number  # type: ignore[attr-defined]
    return found


def test_lists_hold_the_cases_and_jobs_of_the_keys_own_group(
    keyed: TestClient, desk: Header, colleague: Header, stranger: Header, everyone: Header
) -> None:
    job = done(keyed, desk)
    own, others, nobodys = job["case_id"], predicted(keyed, stranger), predicted(keyed, everyone)
    assert cases(keyed, desk) == cases(keyed, colleague) == [own]
    assert cases(keyed, stranger) == [others] and cases(keyed, everyone) == [nobodys, others, own]
    assert jobs(keyed, colleague) == jobs(keyed, everyone) == [job["job"]] and jobs(keyed, stranger) == []
    for path in ("/", "/echo/cases"):
        page = keyed.get(path, headers=desk).text
        assert own in page and others not in page and nobodys not in page
        assert others in keyed.get(path, headers=everyone).text


def test_no_route_reveals_another_groups_case_or_job(
    keyed: TestClient, desk: Header, colleague: Header, stranger: Header
) -> None:
    job = done(keyed, desk)
    case = job["case_id"]
    real = {"case_id": case, "job_id": job["job"], "file": "result.json"}
    checked = 0
    for path, operations in keyed.app.openapi()["paths"].items():  # type: ignore[attr-defined]
        if "{case_id}" not in path and "{job_id}" not in path:
            continue
        for method in operations:
            body = {"verdicts": {}} if method == "put" else None
            known_path, unknown_path = path.format(**real), path.format(**dict.fromkeys(real, "none"))
            response = keyed.request(method, known_path, json=body, headers=stranger)
            assert response.status_code == 404, (method, path)
            unknown_detail = keyed.request(method, unknown_path, json=body, headers=stranger).json()["detail"]
            refused_detail = response.json()["detail"].replace(case, "none").replace(job["job"], "none")
            assert refused_detail == unknown_detail, "the answer is the same as for one that does not exist"
            if method == "get":
                assert keyed.get(known_path, headers=colleague).status_code == 200, path
            checked += 1
    assert checked >= 10
    for path, last in ((CASES, case), (JOBS, job["job"]), ("/echo/cases", case)):
        assert keyed.get(path, params={"before": last}, headers=stranger).status_code == 404
        assert keyed.get(path, params={"before": last}, headers=colleague).status_code == 200
    assert cases(keyed, desk) == [case], "no other group could delete it"


def test_no_application_route_reveals_another_groups_case(settings: Settings) -> None:
    client = TestClient(create_app(settings.model_copy(update={"require_key": True})))
    store, stranger = client.app.state.store, add(client, "treasury-1", "treasury")  # type: ignore[attr-defined]
    checked_apps = []
    for app in installed():
        case, own = (
            store.add(
                app=app,
                interface="json",
                inputs=[],
                options={},
                artifact=("none", 1),
                outputs=Outputs(result=b"{}", picture=b"x"),
                group=group,
            ).id
            for group in ("desk", "treasury")
        )
        for path, operations in client.app.openapi()["paths"].items():  # type: ignore[attr-defined]
            if not path.startswith(f"/api/{app}/cases/"):
                continue
            for method in operations:
                body = {} if method == "put" else None
                for first, prior in ((case, case), (own, case))[: 2 if path.endswith("/comparison") else 1]:
                    known_path = path.format(case_id=first, file="result.json")
                    response = client.request(method, known_path, params={"prior": prior}, json=body, headers=stranger)
                    assert response.status_code == 404 and f"has no case '{case}'" in response.text, (method, path)
                    checked_apps.append(path)
    assert {"/api/medical/cases/{case_id}/comparison", "/api/driving/cases/{case_id}"} <= set(checked_apps)


def test_idempotency_keys_are_separate_for_each_group(
    keyed: TestClient, desk: Header, colleague: Header, stranger: Header
) -> None:
    first = done(keyed, desk, **{"Idempotency-Key": "batch 1"})
    assert done(keyed, colleague, **{"Idempotency-Key": "batch 1"})["job"] == first["job"]
    assert done(keyed, stranger, **{"Idempotency-Key": "batch 1"})["job"] != first["job"]


def test_a_group_at_its_case_limit_loses_its_own_oldest_cases(
    serve: Callable[..., TestClient], settings: Settings
) -> None:
    client = serve(require_key=True, keep_cases=2)
    desk, stranger, nobody = add(client, "d", "desk"), add(client, "t", "treasury"), add(client, "anna")
    first, own = predicted(client, desk), predicted(client, nobody)
    flood = [predicted(client, stranger) for _ in range(4)]
    assert cases(client, desk) == [first] and cases(client, stranger) == flood[:1:-1]
    latest = [predicted(client, desk) for _ in range(2)]
    assert cases(client, desk) == latest[::-1], "its oldest case is deleted"
    assert cases(client, nobody)[-1] == own and len(cases(client, nobody)) == 5
    assert {path.name for path in (settings.store / "cases").iterdir()} == set(cases(client, nobody))


def test_the_byte_limit_applies_to_each_group(serve: Callable[..., TestClient]) -> None:
    client = serve(require_key=True)
    predicted(client, add(client, "desk-1", "desk"))
    size = client.app.state.store.used_bytes("echo")  # type: ignore[attr-defined]
    client.__exit__(None, None, None)
    client = serve(require_key=True, keep_bytes=2 * size)
    desk, stranger = add(client, "desk-2", "desk"), add(client, "treasury-1", "treasury")
    remaining = [predicted(client, desk), *cases(client, desk)[1:]]
    flood = [predicted(client, stranger) for _ in range(3)]
    assert cases(client, desk) == remaining and len(remaining) == 2 and cases(client, stranger) == flood[:0:-1]


def test_the_jobs_of_a_group_leave_room_for_other_groups_and_take_turns(
    serve: Callable[..., TestClient], echo: Echo
) -> None:
    client = serve(require_key=True, max_jobs=3)
    desk, stranger, nobody = add(client, "d", "desk"), add(client, "t", "treasury"), add(client, "anna")
    echo.gate.clear()

    def handed_in(header: Header) -> str:
        response = client.post(JOBS, files=[csv(2)], headers=header)
        assert response.status_code == 202, response.text
        found: str = response.json()["url"]
        return found

    flood = [handed_in(desk)]
    until(echo.entered.is_set)
    flood += [handed_in(desk), handed_in(desk)]
    response = client.post(JOBS, files=[csv(2)], headers=desk)
    assert response.status_code == 503 and "the maximum number of jobs of the group desk" in response.json()["detail"]
    others = [handed_in(stranger), handed_in(nobody)]
    echo.gate.set()
    every = [*flood, *others]
    until(lambda: all(client.get(url, headers=nobody).json()["state"] == "done" for url in every))
    answered = [client.get(url, headers=nobody).json()["case_id"] for url in (flood[0], *others, *flood[1:])]
    assert cases(client, nobody) == answered[::-1], "jobs of others come before the rest of a flood"
    assert client.post(JOBS, files=[csv(2)], headers=desk).status_code == 202


def test_the_requests_of_a_group_leave_places_for_other_groups_and_take_turns(
    serve: Callable[..., TestClient], echo: Echo
) -> None:
    client = serve(require_key=True, queue_length=3, max_batch=1)
    desk, stranger, nobody = add(client, "d", "desk"), add(client, "t", "treasury"), add(client, "anna")
    echo.gate.clear()
    with ThreadPoolExecutor(6) as pool:

        def handed_in(header: Header, unit: str) -> Future[Any]:
            return pool.submit(client.post, PREDICT, files=[csv(1)], data={"unit": unit}, headers=header)

        inside = [handed_in(desk, "flood")]
        until(echo.entered.is_set)
        inside += [handed_in(desk, "flood") for _ in range(3)]
        until(lambda: waiting(client, 3))
        response = client.post(PREDICT, files=[csv(2)], headers=desk)
        assert response.status_code == 503 and "as many requests of the group desk as it can hold" in response.text
        inside += [handed_in(stranger, "other"), handed_in(nobody, "nobody's")]
        until(lambda: waiting(client, 5))
        echo.gate.set()
        assert {future.result().status_code for future in inside} == {200}
    assert echo.units[0] == "flood" and set(echo.units[1:3]) == {"other", "nobody's"}, "not behind the flood"
    assert client.post(PREDICT, files=[csv(2)], headers=desk).status_code == 200


@contextmanager
def all_places_taken(
    client: TestClient, echo: Echo, headers: Header
) -> Iterator[tuple[ThreadPoolExecutor, list[Future[Any]]]]:
    """Keeps one request of a key computing and another waiting until the gate is set; yields a pool for others."""
    echo.gate.clear()
    echo.entered.clear()
    with ThreadPoolExecutor(3) as pool:
        inside = [pool.submit(client.post, PREDICT, files=[csv(1)], headers=headers)]
        until(echo.entered.is_set)
        inside.append(pool.submit(client.post, PREDICT, files=[csv(1)], headers=headers))
        until(lambda: waiting(client, 1))
        try:
            yield pool, inside
        finally:
            echo.gate.set()


def test_a_file_on_request_does_not_wait_for_the_requests_of_another_group(
    serve: Callable[..., TestClient], echo: Echo
) -> None:
    client = serve(require_key=True, queue_length=1, max_batch=1)
    desk, stranger = add(client, "d", "desk"), add(client, "t", "treasury")
    later = client.post(PREDICT, files=[csv(1)], data={"later": "yes"}, headers=stranger).json()
    with all_places_taken(client, echo, desk) as (pool, inside):
        assert client.post(PREDICT, files=[csv(1)], headers=desk).status_code == 503
        picture = pool.submit(client.get, later["picture"], headers=stranger)
        echo.gate.set()
        assert picture.result().status_code == 200
        assert {future.result().status_code for future in inside} == {200}


def test_a_caller_without_a_group_gets_a_file_of_a_group_at_its_limit(
    serve: Callable[..., TestClient], echo: Echo
) -> None:
    client = serve(require_key=True, queue_length=1, max_batch=1)
    desk, nobody = add(client, "d", "desk"), add(client, "anna")
    later = client.post(PREDICT, files=[csv(1)], data={"later": "yes"}, headers=desk).json()
    with all_places_taken(client, echo, desk) as (pool, inside):
        response = client.get(later["picture"], headers=desk)
        picture = pool.submit(client.get, later["picture"], headers=nobody)
        until(lambda: picture.done() or waiting(client, 2))
        echo.gate.set()
        assert (response.status_code, picture.result().status_code) == (503, 200)
        assert {future.result().status_code for future in inside} == {200}


def test_a_key_of_a_group_cannot_read_the_counters_of_all_groups(
    keyed: TestClient, desk: Header, everyone: Header
) -> None:
    for path in ("/v2/models/stats", "/v2/models/echo/stats", "/v2/models/echo/versions/2/stats"):
        response = keyed.get(path, headers=desk)
        assert response.status_code == 403 and "use a key without a group" in response.json()["error"]
        assert keyed.get(path, headers=everyone).status_code == 200


def test_a_case_that_is_not_stored_also_belongs_to_its_group(
    serve: Callable[..., TestClient],
) -> None:
    client = serve(require_key=True, keep_bytes=1)
    desk, stranger = add(client, "desk-1", "desk"), add(client, "treasury-1", "treasury")
    case = predicted(client, desk)
    assert client.get(f"{CASES}/{case}", headers=desk).json()["remark"]
    assert client.get(f"{CASES}/{case}", headers=stranger).status_code == 404


def test_a_server_without_keys_shows_the_cases_and_jobs_of_all_groups(
    settings: Settings, echo_app: App, tmp_path: Path, echo: object
) -> None:
    with TestClient(create_app(settings.model_copy(update={"require_key": True}), {"echo": echo_app})) as client:
        case = predicted(client, add(client, "desk-1", "desk"))
    with TestClient(create_app(settings, {"echo": echo_app})) as client:
        assert cases(client, {}) == [case]


def test_a_backup_includes_groups(keyed: TestClient, desk: Header, stranger: Header, tmp_path: Path) -> None:
    case = predicted(keyed, desk)
    store = keyed.app.state.store  # type: ignore[attr-defined]
    backup(store.engine, store.folder, tmp_path / "b.tar")
    with closing(CaseStore(tmp_path / "other")) as other_store:
        restore(other_store.engine, other_store.folder, tmp_path / "b.tar")
        assert other_store.get("echo", case, "desk") is not None and other_store.get("echo", case, "treasury") is None


def test_keys_are_added_with_a_group_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIVIUM_STORE", str(tmp_path / "store"))
    assert cli.main(["keys", "add", "desk-1", "--group", "desk"]) == 0
    assert "user of the group desk" in (stderr := capsys.readouterr().err) and "no other key has the group" in stderr
    assert cli.main(["keys", "add", "desk-3", "--group", "desk"]) == 0
    assert "no other key" not in capsys.readouterr().err
    assert cli.main(["keys", "add", "desk-4", "--group", "Desk"]) == 0
    assert "no other key has the group Desk" in capsys.readouterr().err, "it may be misspelt"
    for ignored in (
        ["list", "--group", "desk"],
        ["revoke", "desk-3", "--group", "Desk"],
        ["list", "--role", "operator"],
    ):
        assert cli.main(["keys", *ignored]) == 2 and "takes neither --group nor --role" in capsys.readouterr().err
    for words, why in (
        (["--group", "a b"], "name of a group"),
        (["--group", "desk", "--role", "operator"], "operator"),
    ):
        assert cli.main(["keys", "add", "desk-2", *words]) == 2
        assert why in capsys.readouterr().err
    assert cli.main(["keys", "list"]) == 0
    assert "desk-1" in (listed := capsys.readouterr().out) and "group" in listed
