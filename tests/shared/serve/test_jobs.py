"""Jobs: accepted at once, followed by events, cancelled, and resumed by the next server."""

from __future__ import annotations

import json
import socket
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from typing import Any

import httpx2 as httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError

from shared.app import App
from shared.serve.app import create_app
from shared.serve.runtime import job_runner
from shared.serve.runtime.worker_errors import WorkerNotLoaded
from shared.serve.service import Service
from shared.serve.settings import Settings
from shared.store.cases import CaseStore
from shared.store.jobs import JobStore, without_names
from tests.conftest import serving
from tests.shared.serve.echo import Echo, csv, until

Serve = Callable[..., TestClient]
JOBS = "/api/echo/jobs"


def add(client: TestClient, *numbers: float, **options: str) -> dict[str, Any]:
    response = client.post(JOBS, files=[csv(*numbers)], data=options)
    assert response.status_code == 202, response.text
    assert response.headers["Location"] == response.json()["url"]
    found: dict[str, Any] = response.json()
    return found


def events(client: TestClient, job: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a job until it has ended."""
    with client.stream("GET", job["events"]) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        return [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]


def test_a_job_is_accepted_at_once_and_its_events_end_with_its_case(
    echo_client: TestClient, echo: Echo, settings: Settings
) -> None:
    echo.gate.clear()
    job = add(echo_client, 1, 2, unit="mm")
    assert (job["state"], job["case"], job["attempts"]) == ("queued", None, 0)
    until(lambda: echo_client.get(job["url"]).json()["stage"] == "doubling, part 1 of 2")
    assert len(list((settings.store / "jobs").iterdir())) == 1
    echo.gate.set()
    reported = events(echo_client, job)
    assert reported[-1]["state"] == "done" and reported[-1] == echo_client.get(job["url"]).json()
    case = echo_client.get(reported[-1]["case"]).json()
    assert (reported[0]["case_id"], reported[-1]["case_id"]) == (None, case["case"])
    assert (
        case["result"] == {"doubled": [2, 4], "options": {"unit": "mm"}} and case["inputs"][0]["name"] == "numbers.csv"
    )
    until(lambda: not any((settings.store / "jobs").iterdir()))  # the files are removed once they are not needed
    assert [entry["job"] for entry in echo_client.get(JOBS).json()["jobs"]] == [job["job"]]


def test_a_sample_can_be_a_job_and_requests_do_not_wait_behind_jobs(echo_client: TestClient, echo: Echo) -> None:
    job = echo_client.post(JOBS, data={"sample": "three"}).json()
    assert echo_client.post("/api/echo/predict", files=[csv(7)]).json()["result"]["doubled"] == [14]
    final = events(echo_client, job)[-1]
    assert echo_client.get(final["case"]).json()["result"]["doubled"] == [2, 4, 6]


def test_jobs_are_counted_separately_from_requests(echo_client: TestClient) -> None:
    assert echo_client.post("/api/echo/predict", files=[csv(1)]).status_code == 200
    events(echo_client, add(echo_client, 2))
    text = echo_client.get("/metrics").text
    for model in ("echo", "echo jobs"):
        label = f'{{model="{model}",version="2"}} 1.0'
        assert f"nv_inference_request_success{label}" in text
        assert f"trivium_inference_request_duration_seconds_count{label}" in text


def test_a_failed_job_keeps_no_file_names(echo_client: TestClient) -> None:
    job = echo_client.post(JOBS, files=[("files", ("Mueller_Hans.csv", b"1,two"))]).json()
    final = events(echo_client, job)[-1]
    assert final["state"] == "failed" and "the file is not a CSV of numbers" in final["problem"]
    assert "Mueller" not in echo_client.get(JOBS).text
    assert without_names("a.csv and ba.csv differ", ["a.csv", "ba.csv"]) == "file 1 and file 2 differ"
    assert without_names("12 and 1 differ by 10.1 mm", ["1", "12", "10"]) == "12 and 1 differ by 10.1 mm"
    redacted = without_names("Mueller/scan.dcm of a.zip, scan.dcm too", ["a.zip"], ["Mueller/", "Mueller/scan.dcm"])
    assert redacted == "a file of the archive of the file, a file of the archive too"


@pytest.mark.parametrize(
    ("content", "options", "status", "words"),
    [(b"1,two", {}, 422, "is not a CSV of numbers"), (b"1", {"poison": "yes"}, 500, "its log has the details")],
)
def test_a_failed_job_states_the_reason(
    echo_client: TestClient,
    content: bytes,
    options: dict[str, str],
    status: int,
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    job = echo_client.post(JOBS, files=[("files", ("bad.csv", content))], data=options).json()
    final = events(echo_client, job)[-1]
    assert final["state"] == "failed" and final["status"] == status and words in final["problem"]
    assert "secret" not in final["problem"]
    if status == 500:  # the job's log line has the number under which the worker has logged the cause
        line = next(record.message for record in caplog.records if job["job"] in record.message)
        number = line.split("(error ")[1].rstrip(")")
        assert any(number in record.message and record.exc_info for record in caplog.records)


def test_a_cancelled_job_is_not_computed_and_leaves_no_files(
    echo_client: TestClient, echo: Echo, settings: Settings
) -> None:
    echo.gate.clear()
    running, waiting = add(echo_client, 1), add(echo_client, 2)
    until(echo.entered.is_set)
    for job in (waiting, running):
        assert echo_client.delete(job["url"]).json()["state"] == "cancelled"
        assert events(echo_client, job)[-1]["state"] == "cancelled"
    echo.gate.set()
    last = add(echo_client, 3)
    assert events(echo_client, last)[-1]["state"] == "done"
    assert echo_client.delete(last["url"]).json()["state"] == "done"
    assert len(echo_client.get("/api/echo/cases").json()["cases"]) == 1
    assert list((settings.store / "jobs").iterdir()) == []


def test_the_next_server_resumes_a_job_whose_server_was_killed(serve: Serve, echo: Echo, settings: Settings) -> None:
    echo.gate.clear()
    first = serve()
    job = add(first, 5)
    until(echo.entered.is_set)
    first.__exit__(None, None, None)
    with closing(sqlite3.connect(settings.store / "trivium.sqlite")) as database:
        # The state that a killed server leaves; a server that shuts down puts the job back into the queue.
        assert database.execute("SELECT state, attempts FROM jobs").fetchone() == ("queued", 0)
        database.execute("UPDATE jobs SET state = 'running', server = 'killed', attempts = 1")
        database.commit()
    echo.gate.set()
    second = serve()
    final = events(second, job)[-1]
    assert final["state"] == "done" and final["attempts"] == 2
    assert second.get(final["case"]).json()["result"]["doubled"] == [10]


def test_a_job_that_kills_every_server_is_given_up(serve: Serve, settings: Settings, echo: Echo) -> None:
    echo.gate.clear()
    first = serve()
    job = add(first, 5)
    until(echo.entered.is_set)
    first.__exit__(None, None, None)
    with closing(sqlite3.connect(settings.store / "trivium.sqlite")) as database:
        database.execute("UPDATE jobs SET state = 'running', server = 'killed', attempts = 3")
        database.commit()
    final = events(serve(), job)[-1]
    assert final["state"] == "failed" and "started 3 times" in final["problem"]
    echo.gate.set()


def test_a_job_waits_until_a_new_worker_may_be_started(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[float] = []

    async def run_job(*_: object) -> str:
        started.append(time.monotonic())
        raise WorkerNotLoaded("its worker ended while loading (SIGKILL)", 0.1)

    monkeypatch.setattr(Service, "run_job", run_job)
    client = serve()
    final = events(client, add(client, 1))[-1]
    assert final["state"] == "failed" and "its server or worker ended" in final["problem"] and len(started) == 3
    assert min(later - earlier for earlier, later in pairwise(started)) >= 0.1


def test_jobs_above_the_limit_are_refused(serve: Serve, echo: Echo) -> None:
    client = serve(max_jobs=1)
    assert client.post(JOBS, data={}).status_code in (415, 422)
    echo.gate.clear()
    add(client, 1)
    response = client.post(JOBS, files=[csv(2)])
    assert response.status_code == 503 and "TRIVIUM_MAX_JOBS" in response.json()["detail"]
    assert response.json()["detail"].endswith(f"again in {response.headers['Retry-After']} seconds")
    assert client.get(f"{JOBS}/none").status_code == client.get(f"{JOBS}/none/events").status_code == 404
    echo.gate.set()


def test_a_job_is_accepted_while_requests_are_refused_for_lack_of_room(serve: Serve, echo: Echo) -> None:
    client = serve(queue_length=1, max_batch=1)
    echo.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        try:
            waiting = [pool.submit(client.post, "/api/echo/predict", files=[csv(number)]) for number in (1, 2)]
            until(lambda: 'pending_request_count{model="echo",version="2"} 1.0' in client.get("/metrics").text)
            assert client.post("/api/echo/predict", files=[csv(3)]).status_code == 503
            job = add(client, 3)
        finally:
            echo.gate.set()
        assert [future.result().status_code for future in waiting] == [200, 200]
    assert events(client, job)[-1]["state"] == "done"


def test_above_the_limit_a_job_is_refused_before_its_body_is_read(
    settings: Settings, echo_app: App, echo: Echo
) -> None:
    echo.gate.clear()
    server = create_app(settings.model_copy(update={"max_jobs": 1, "hosts": None}), {"echo": echo_app})
    with serving(server) as address:
        assert httpx.post(f"{address}{JOBS}", data={"sample": "three"}).status_code == 202
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            head = f"POST {JOBS} HTTP/1.1\r\nHost: {host}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            connection.sendall(f"{head}Content-Length: 100000\r\n\r\n".encode())
            answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 503") and b"retry-after: 60" in answer.lower()
        echo.gate.set()


def test_metrics_count_waiting_jobs_and_work_without_the_database(
    echo_client: TestClient, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    echo.gate.clear()
    jobs = [add(echo_client, number) for number in range(3)]
    until(echo.entered.is_set)
    text = echo_client.get("/metrics").text
    for state, number in (("queued", 2.0), ("running", 1.0)):
        assert f'trivium_jobs{{app="echo",state="{state}"}} {number}' in text
    assert float(text.partition("\ntrivium_store_free_bytes ")[2].split()[0]) > 0
    calls: list[int] = []
    monkeypatch.setattr(JobStore, "unanswered", database_is_gone(JobStore.unanswered, 1, calls))
    without = echo_client.get("/metrics")
    assert calls and without.status_code == 200 and "trivium_jobs{" not in without.text
    echo.gate.set()
    until(lambda: all(echo_client.get(job["url"]).json()["state"] == "done" for job in jobs))
    assert 'trivium_jobs{app="echo",state="queued"} 0.0' in echo_client.get("/metrics").text


def test_the_file_names_of_an_ended_job_are_removed_from_the_database_journal_too(
    serve: Serve, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.serve.app._EMPTY_JOURNAL_INTERVAL_S", 0.02)
    client = serve()
    job = client.post(JOBS, files=[("files", ("MUELLER_HANS.csv", b"none"))]).json()
    assert events(client, job)[-1]["state"] == "failed"
    until(lambda: not any(b"MUELLER" in path.read_bytes() for path in settings.store.glob("trivium.sqlite*")))


def test_a_repeated_submission_with_the_same_key_returns_the_existing_job(
    echo_client: TestClient, echo: Echo, settings: Settings
) -> None:
    def hand_in(key: str, number: float = 1, **options: str) -> str:
        response = echo_client.post(JOBS, files=[csv(number)], data=options, headers={"Idempotency-Key": key})
        assert response.status_code == 202 and response.headers["Location"].endswith(response.json()["job"])
        return str(response.json()["job"])

    echo.gate.clear()
    first = hand_in("MUELLER-7")
    until(echo.entered.is_set)
    assert hand_in("MUELLER-7") == first, "while it runs"
    others = {hand_in("MUELLER-8"), hand_in("MUELLER-7", 2), hand_in("MUELLER-7", unit="mm"), hand_in("")}
    assert len(others | {first}) == 5, "another key or form, or no key, makes another job"
    echo.gate.set()
    until(lambda: echo_client.get(f"{JOBS}/{first}").json()["state"] == "done")
    assert hand_in("MUELLER-7") == first, "when it is done"
    assert len(echo_client.get(JOBS).json()["jobs"]) == 5
    until(lambda: not any((settings.store / "jobs").iterdir()))
    assert not any(b"MUELLER" in path.read_bytes() for path in settings.store.glob("trivium.sqlite*"))


def test_a_job_submitted_many_times_at_once_is_computed_once(echo_client: TestClient, echo: Echo) -> None:
    def hand_in(form: dict[str, Any]) -> Any:
        return echo_client.post(JOBS, headers={"Idempotency-Key": "k"}, **form)

    for form in ({"data": {"sample": "three"}}, {"files": [csv(7)]}):
        with ThreadPoolExecutor(8) as pool:
            responses = list(pool.map(hand_in, [form] * 24))
        accepted = [response.json()["job"] for response in responses if response.status_code == 202]
        assert len(set(accepted)) == 1 and {response.status_code for response in responses} <= {202, 409}
        assert events(echo_client, {"events": f"{JOBS}/{accepted[0]}/events"})[-1]["state"] == "done"
    assert len(echo_client.get("/api/echo/cases").json()["cases"]) == 2


def test_an_ended_job_keeps_no_file_names(echo_client: TestClient, settings: Settings) -> None:
    events(echo_client, add(echo_client, 1))
    with closing(sqlite3.connect(settings.store / "trivium.sqlite")) as database:
        assert database.execute("SELECT state, files FROM jobs").fetchall() == [("done", "[]")]


def test_files_that_a_killed_server_left_of_ended_jobs_are_removed(
    serve: Serve, echo: Echo, settings: Settings
) -> None:
    echo.gate.clear()
    first = serve()
    job = add(first, 5)
    until(echo.entered.is_set)
    first.__exit__(None, None, None)
    echo.gate.set()
    leftover_folder = settings.store / "jobs" / ("0" * 32)
    leftover_folder.mkdir()
    (leftover_folder / "scan.nii.gz").write_bytes(b"1")
    assert events(serve(), job)[-1]["state"] == "done"
    until(lambda: not any((settings.store / "jobs").iterdir()))


def database_is_gone(method: Callable[..., Any], times: int, calls: list[int]) -> Callable[..., Any]:
    """The method, whose first ``times`` calls fail because the database is unreachable."""

    def fail_first_calls(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) <= times:
            raise OperationalError("UPDATE", {}, Exception("server closed the connection"))
        return method(*arguments, **options)

    return fail_first_calls


def test_a_job_survives_a_database_that_is_unreachable_when_it_ends(
    echo_client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_runner, "_WRITE_RETRY_INTERVAL_S", 0.01)
    calls: list[int] = []
    monkeypatch.setattr(JobStore, "mark_done", database_is_gone(JobStore.mark_done, 3, calls))
    final = events(echo_client, add(echo_client, 4))[-1]
    assert (final["state"], final["attempts"], len(calls)) == ("done", 1, 4), "it is not computed again for that"
    monkeypatch.setattr(CaseStore, "add", database_is_gone(CaseStore.add, 1, []))
    final = events(echo_client, add(echo_client, 5))[-1]
    assert (final["state"], final["attempts"]) == ("done", 2), "its answer could not be stored"
    assert echo_client.get(final["case"]).json()["result"]["doubled"] == [10]


def test_heartbeats_continue_after_the_database_was_unreachable(
    echo_client: TestClient, echo: Echo, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_runner, "_HEARTBEAT_INTERVAL_S", 0.01)
    calls: list[int] = []
    monkeypatch.setattr(JobStore, "send_heartbeat", database_is_gone(JobStore.send_heartbeat, 3, calls))
    echo.gate.clear()
    job = add(echo_client, 1)
    until(lambda: len(calls) > 5)
    with closing(CaseStore(settings.store, shared_with_server=True)) as beside:
        other_server = JobStore(beside.engine, settings.store, server="another")
        found = other_server.get("echo", job["job"])
        assert found is not None and found.state == "running" and other_server.cancel(found)
    runner = echo_client.app.state.services["echo"].runner  # type: ignore[attr-defined]
    until(lambda: runner._running is None)
    echo.gate.set()
    assert events(echo_client, add(echo_client, 2))[-1]["state"] == "done"
    assert len(echo_client.get("/api/echo/cases").json()["cases"]) == 1, "the other job was not computed to the end"


def test_a_server_shuts_down_while_the_database_is_unreachable(
    serve: Serve, echo: Echo, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    echo.gate.clear()
    client = serve()
    job = add(client, 1)
    until(echo.entered.is_set)
    with monkeypatch.context() as away:
        away.setattr(JobStore, "release", database_is_gone(JobStore.release, 9, []))
        client.__exit__(None, None, None)
    echo.gate.set()
    final = events(serve(), job)[-1]
    assert (final["state"], final["attempts"]) == ("done", 2), (
        "the next server resumes it like the job of a killed server"
    )


def test_an_idle_event_stream_is_kept_open_and_can_be_reopened(
    echo_client: TestClient, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_runner, "_KEEPALIVE_INTERVAL_S", 0.0)
    monkeypatch.setattr(job_runner, "_REREAD_INTERVAL_S", 0.01)
    get, calls = JobStore.get, list[int]()
    echo.gate.clear()
    job = add(echo_client, 1)
    until(echo.entered.is_set)

    def open_after_a_while(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise OperationalError("SELECT", {}, Exception("server closed the connection"))
        if len(calls) > 9:
            echo.gate.set()
        return get(*arguments)

    monkeypatch.setattr(JobStore, "get", open_after_a_while)
    with echo_client.stream("GET", job["events"]) as stream:
        lines = [line for line in stream.iter_lines() if line]
    assert lines.count(": keep-alive") >= 3 and lines[-2] == "event: done"
    resumed_lines = [
        line for line in echo_client.get(job["events"], headers={"Last-Event-ID": "1"}).text.splitlines() if line
    ]
    assert resumed_lines == lines[-2:], "the first event is the current state"
