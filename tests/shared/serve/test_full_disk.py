"""A store on a full disk."""

from __future__ import annotations

import errno
import shutil
from collections import namedtuple
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Delete
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from shared import cli
from shared.serve import service
from shared.serve.api import uploads
from shared.serve.runtime import job_runner
from shared.serve.settings import Settings
from shared.store import cases, disk
from shared.store.jobs import JobStore
from shared.store.promotions import Promotions
from shared.store.records import Outputs
from tests.shared.serve.echo import Echo, csv, until

PREDICT, READY = "/api/echo/predict", "/v2/health/ready"
FAULTS = [
    pytest.param(OSError(errno.ENOSPC, "No space left on device"), id="no-space"),
    pytest.param(OSError(errno.EDQUOT, "Disk quota exceeded"), id="quota"),
]


def fail(error: Exception) -> Callable[..., Any]:
    def failing(*_: object, **__: object) -> Any:
        raise error

    return failing


@pytest.mark.parametrize("error", FAULTS)
def test_an_answer_that_cannot_be_kept_has_a_remark_and_is_held_for_a_while(
    echo_client: TestClient, monkeypatch: pytest.MonkeyPatch, settings: Settings, error: OSError
) -> None:
    with monkeypatch.context() as full:
        full.setattr(cases, "publish", fail(error))
        response = echo_client.post(PREDICT, files=[csv(1)])
    assert response.status_code == 200 and response.json()["result"]["doubled"] == [2]
    remark = response.json()["remark"]
    assert remark.startswith("the answer was computed but is not kept: the disk of the store is full")
    assert "TRIVIUM_KEEP_DAYS" in remark
    assert list((settings.store / "cases").iterdir()) == [], "no files are left"
    place = f"/api/echo/cases/{response.json()['case']}"
    assert echo_client.get(place).json() == response.json()
    assert echo_client.get(response.json()["picture"]).content.startswith(b"\x89PNG")
    assert echo_client.get(response.json()["files"]["doubled.csv"]).text == "2.0"
    assert echo_client.get("/api/echo/cases").json()["cases"] == []
    assert echo_client.delete(place).status_code == 204 and echo_client.get(place).status_code == 404
    stored_response = echo_client.post(PREDICT, files=[csv(1)])
    assert stored_response.status_code == 200 and stored_response.json()["remark"] is None, "once there is space"


def test_an_answer_in_memory_does_not_hold_the_memory_of_the_workers_reply(tmp_path: Path) -> None:
    reply = bytearray(b"{}PNG1.0") + bytes(1_000_000)  # the rest is an input, which is not held
    view = memoryview(reply)
    with closing(cases.CaseStore(tmp_path)) as store:
        case = store.add(
            app="echo",
            interface="json",
            inputs=(),
            options={},
            artifact=("echo", 1),
            outputs=Outputs(result=view[:2], picture=view[2:5], files={"out.csv": view[5:8]}),
            max_bytes=1,
        )
        view.release()
        assert case.remark is not None and store.held_file(case, "out.csv") == b"1.0"
        reply.clear()  # raises BufferError while anything refers to this memory


def test_a_database_that_cannot_grow_leaves_no_files(
    echo_client: TestClient, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    error = OperationalError("INSERT", {}, Exception("database or disk is full"))
    with monkeypatch.context() as full:
        full.setattr(Session, "add", fail(error))
        response = echo_client.post(PREDICT, files=[csv(1)])
    assert response.status_code == 200 and "the disk of the store is full" in response.json()["remark"]
    assert list((settings.store / "cases").iterdir()) == []


def test_an_upload_without_disk_space_is_refused_with_507(
    echo_client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads._Form, "write", fail(OSError(errno.ENOSPC, "No space left on device")))
    response = echo_client.post(PREDICT, files=[csv(1)])
    assert response.status_code == 507 and "the upload cannot be stored" in response.json()["detail"]


@pytest.mark.parametrize("error", [*FAULTS, OSError("No space left on device (os error 28)")])
def test_reading_an_archive_or_a_sample_without_disk_space_is_507(
    echo_client: TestClient, echo: Echo, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    with monkeypatch.context() as full:
        full.setattr(echo, "decode", fail(error))
        response = echo_client.post(PREDICT, files=[csv(1)])
        job = echo_client.post("/api/echo/jobs", files=[csv(1)]).json()
        until(lambda: echo_client.get(job["url"]).json()["state"] == "failed")
    assert response.status_code == 507 and "TMPDIR" in response.json()["detail"]
    failed_job = echo_client.get(job["url"]).json()
    assert failed_job["status"] == 507 and failed_job["problem"] == response.json()["detail"]
    assert echo_client.post(PREDICT, files=[csv(1)]).status_code == 200, "once there is space"


def test_another_disk_error_is_still_an_unexpected_error(
    echo_client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cases, "publish", fail(OSError(errno.EIO, "Input/output error")))
    assert echo_client.post(PREDICT, files=[csv(1)]).status_code == 500


def test_a_server_with_a_full_disk_is_not_ready_and_says_why(
    echo_client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert echo_client.get(READY).json() == {"ready": True}
    with monkeypatch.context() as full:
        usage = namedtuple("usage", "total used free")
        full.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 10**6, 10**6))
        response = echo_client.get(READY)
        assert response.status_code == 503 and response.json()["ready"] is False
        assert response.json()["reason"].startswith("the disk of the store has 1 MB left; free space there")
    with monkeypatch.context() as full:
        full.setattr(disk.tempfile, "TemporaryFile", fail(OSError(errno.EDQUOT, "Disk quota exceeded")))
        response = echo_client.get(READY)
        assert response.status_code == 503 and "Disk quota exceeded" in response.json()["reason"]
    assert echo_client.get(READY).status_code == 200


@pytest.fixture
def rows_need_space(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    """A disk so full that SQLite cannot delete a row before the files of a case are deleted."""
    execute = Session.execute

    def executed(session: Session, statement: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(statement, Delete) and any((settings.store / "cases").iterdir()):
            raise OperationalError("DELETE", {}, Exception("database or disk is full"))
        return execute(session, statement, *arguments, **options)

    monkeypatch.setattr(Session, "execute", executed)


def test_cases_can_be_deleted_on_a_full_disk(echo_client: TestClient, rows_need_space: None) -> None:
    case = echo_client.post(PREDICT, files=[csv(1)]).json()["case"]
    assert echo_client.delete(f"/api/echo/cases/{case}").status_code == 204
    assert echo_client.get("/api/echo/cases").json()["cases"] == []


def test_cases_can_be_purged_on_a_full_disk(
    echo_client: TestClient,
    rows_need_space: None,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert echo_client.post(PREDICT, files=[csv(1)]).status_code == 200
    monkeypatch.setenv("TRIVIUM_STORE", str(settings.store))
    assert cli.main(["purge", "--older-than", "0h"]) == 0
    assert "1 cases and 0 ended jobs deleted" in capsys.readouterr().out
    assert echo_client.get("/api/echo/cases").json()["cases"] == []
    assert echo_client.post(PREDICT, files=[csv(1)]).status_code == 200
    monkeypatch.setattr(cases.CaseStore, "expire", fail(OperationalError("DELETE", {}, Exception("disk is full"))))
    assert cli.main(["purge", "--older-than", "0h"]) == 2
    assert "not all old cases and jobs could be deleted: the disk of the store is full" in capsys.readouterr().err


@pytest.mark.parametrize("error", [*FAULTS, OperationalError("INSERT", {}, Exception("database or disk is full"))])
def test_a_job_without_disk_space_is_refused_with_507(
    echo_client: TestClient, monkeypatch: pytest.MonkeyPatch, settings: Settings, error: Exception
) -> None:
    monkeypatch.setattr(Session, "add", fail(error))
    response = echo_client.post("/api/echo/jobs", files=[csv(1)])
    assert response.status_code == 507 and "the job cannot be stored: the disk" in response.json()["detail"]
    assert list((settings.store / "jobs").iterdir()) == []


def test_a_job_continues_once_there_is_space(
    echo_client: TestClient, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    monkeypatch.setattr(job_runner, "_WRITE_RETRY_INTERVAL_S", 0.01)
    failures = [OperationalError("UPDATE", {}, Exception("database or disk is full")) for _ in range(3)]
    mark_done = JobStore.mark_done

    def done_later(*arguments: Any) -> bool:
        if failures:
            raise failures.pop()
        return mark_done(*arguments)

    monkeypatch.setattr(JobStore, "mark_done", done_later)
    job = echo_client.post("/api/echo/jobs", files=[csv(1)]).json()
    until(lambda: echo_client.get(job["url"]).json()["state"] not in ("queued", "running"))
    job_status = echo_client.get(job["url"]).json()
    assert (job_status["state"], job_status["attempts"]) == ("done", 1)


def test_the_answer_of_a_job_is_stored_once_there_is_disk_space(
    echo_client: TestClient, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    monkeypatch.setattr(service, "_DISK_SPACE_POLL_INTERVAL_S", 0.01)
    with monkeypatch.context() as full:
        full.setattr(cases, "publish", fail(OSError(errno.ENOSPC, "No space left on device")))
        job = echo_client.post("/api/echo/jobs", files=[csv(1)], data={"later": "yes"}).json()
        until(lambda: echo_client.get(job["url"]).json()["stage"] == "waiting for space on the disk")
        assert echo_client.get(job["url"]).json()["case"] is None
    until(lambda: echo_client.get(job["url"]).json()["state"] == "done")
    case = echo_client.get(echo_client.get(job["url"]).json()["case"]).json()
    assert case["remark"] is None and case["result"]["doubled"] == [2]
    assert [entry["case"] for entry in echo_client.get("/api/echo/cases").json()["cases"]] == [case["case"]]
    assert (settings.store / "cases" / case["case"] / "result.json").is_file()
    assert echo_client.get(case["files"]["sum.txt"]).text == "2.0"


def test_other_writes_without_disk_space_are_507(echo_client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    error = OperationalError("INSERT", {}, Exception("database or disk is full"))
    monkeypatch.setattr(Promotions, "promote", fail(error))
    response = echo_client.post("/api/models/echo/promote", json={"version": 1})
    assert response.status_code == 507 and "nothing was kept: the disk" in response.json()["detail"]
