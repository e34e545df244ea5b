"""PostgreSQL and a worker are killed (SIGKILL) under load: nothing that was acknowledged is lost."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from shared.app import App
from shared.serve.app import create_app
from shared.serve.settings import Settings
from tests.shared.postgresql import PostgreSQL, running
from tests.shared.serve.echo import csv, until

PREDICT, READY = "/api/fragile/predict", "/v2/health/ready"


@pytest.fixture
def database() -> Iterator[PostgreSQL]:
    """A PostgreSQL server that the test may kill."""
    yield from running()


@pytest.fixture
def client(tmp_path: Path, settings: Settings, fragile: dict[str, App], database: PostgreSQL) -> Iterator[TestClient]:
    """A server with a worker process and a store in PostgreSQL."""
    changes = {"workers": 1, "registry": tmp_path / "registry", "store_url": database.database()}
    with TestClient(create_app(settings.model_copy(update=changes), fragile)) as found:
        yield found


def test_acknowledged_work_survives_a_killed_worker_and_a_killed_database(
    client: TestClient, database: PostgreSQL
) -> None:
    acknowledged: list[dict[str, Any]] = []
    statuses: Counter[int] = Counter()
    ended = threading.Event()

    def load() -> None:
        while not ended.is_set():
            response = client.post(PREDICT, files=[csv(1)])
            statuses[response.status_code] += 1
            if response.status_code == 200:
                acknowledged.append(response.json())
            else:
                assert response.status_code == 503 and response.headers["Retry-After"], response.text

    def goes_on() -> None:
        before = len(acknowledged)
        until(lambda: len(acknowledged) > before + 4, 60)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        goes_on()
        (worker,) = client.get("/healthz").json()["apps"]["fragile"]["workers"]
        os.kill(worker["pid"], signal.SIGKILL)
        goes_on()
        database.kill()
        until(lambda: client.get(READY).status_code == 503, 20)
        assert client.get(READY).json()["reason"] == "the store's database cannot be reached"
        assert "database cannot be reached" in client.get("/api/fragile/cases").json()["detail"]
        database.start()
        goes_on()
        until(lambda: client.get(READY).status_code == 200, 20)
    finally:
        ended.set()
        for thread in threads:
            thread.join(60)
    assert set(statuses) == {200, 503} and not any(thread.is_alive() for thread in threads)
    for case in acknowledged:
        assert client.get(f"/api/fragile/cases/{case['case']}").json() == case
