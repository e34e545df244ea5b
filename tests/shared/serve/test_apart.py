"""Heavy work of one application, or of jobs, does not slow down the answers of another application."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from shared.app import App, installed
from shared.serve.app import create_app
from shared.serve.settings import Settings
from tests.shared.serve.echo import csv, until, write_artifact

REQUESTS, TIMES, SLACK_S = 40, 4, 0.5


@pytest.fixture
def client(tmp_path: Path, settings: Settings, fragile: dict[str, App]) -> Iterator[TestClient]:
    """A server with two applications, each in its own worker process."""
    write_artifact(tmp_path / "registry", 1, app="steady", name="steady")
    server_settings = settings.model_copy(update={"workers": 1, "registry": tmp_path / "registry", "deadline_s": 60})
    with TestClient(create_app(server_settings, {**fragile, "steady": installed()["steady"]})) as found:
        yield found


def seconds(client: TestClient) -> float:
    """The 95th percentile of the seconds that the steady application takes to answer."""
    durations_s = []
    for _ in range(REQUESTS):
        began = time.monotonic()
        assert client.post("/api/steady/predict", files=[csv(1)]).status_code == 200
        durations_s.append(time.monotonic() - began)
    return sorted(durations_s)[int(0.95 * REQUESTS)]


def worker(client: TestClient, app: str) -> int:
    (found,) = client.get("/healthz").json()["apps"][app]["workers"]
    return int(found["pid"])


def children() -> set[int]:
    """The worker processes of this process."""
    tasks = Path("/proc/self/task").iterdir()
    return {int(child) for task in tasks for child in (task / "children").read_text().split()}


def test_the_heavy_work_of_one_application_does_not_slow_another(client: TestClient) -> None:
    assert client.post("/api/fragile/predict", files=[csv(1)]).status_code == 200
    seconds(client)  # it is loaded
    alone = seconds(client)
    answers: list[Any] = []

    def burn() -> None:
        answers.append(client.post("/api/fragile/predict", files=[csv(1)], data={"how": "burn"}).status_code)

    asking = threading.Thread(target=burn)
    asking.start()
    job = client.post("/api/fragile/jobs", files=[csv(1)], data={"how": "burn"}).json()
    until(lambda: client.get(job["url"]).json()["stage"] == "computing", 60)
    beside = seconds(client)
    assert not answers and client.get(job["url"]).json()["state"] == "running", "both computed all the while"
    assert beside < TIMES * alone + SLACK_S
    assert client.delete(job["url"]).status_code in (200, 204)
    os.kill(worker(client, "fragile"), 9)
    asking.join()
    assert answers == [503]


def test_a_job_runs_at_a_lower_cpu_priority_than_requests(client: TestClient) -> None:
    assert client.post("/api/fragile/predict", files=[csv(1)]).status_code == 200
    before = children()
    job = client.post("/api/fragile/jobs", files=[csv(1)]).json()
    until(lambda: client.get(job["url"]).json()["state"] == "done", 60)
    (of_jobs,) = children() - before
    assert os.getpriority(os.PRIO_PROCESS, of_jobs) == 5 > os.getpriority(os.PRIO_PROCESS, worker(client, "fragile"))
