"""PostgreSQL and a worker are killed (SIGKILL) in the middle of load: nothing that was acknowledged is lost."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from shared.app import installed
from shared.serve.app import create_app
from shared.serve.settings import Settings
from tests.shared.postgresql import PostgreSQL, executable
from tests.shared.serve.echo import csv, until, write_artifact

PREDICT, READY = "/api/fragile/predict", "/v2/health/ready"


@pytest.fixture
def database() -> Iterator[PostgreSQL]:
    """A PostgreSQL server of this test's own, to be killed."""
    if executable() is None:
        pytest.skip("PostgreSQL's server is not installed")
    with tempfile.TemporaryDirectory(prefix="postgresql-") as folder:
        found = PostgreSQL(Path(folder))
        found.start()
        yield found
        found.stop()


@pytest.fixture
def client(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, database: PostgreSQL
) -> Iterator[TestClient]:
    """A server whose application computes in a process, and whose store is on PostgreSQL."""
    package = tmp_path / "packages" / "fragile-1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: fragile\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[trivium.apps]\nfragile = tests.shared.serve.fragile:app\n")
    monkeypatch.syspath_prepend(package.parent)
    installed.cache_clear()
    write_artifact(tmp_path / "registry", 1, app="fragile")
    given = {"workers": 1, "registry": tmp_path / "registry", "store_url": database.database()}
    apps = {"fragile": installed()["fragile"]}
    with TestClient(create_app(settings.model_copy(update=given), apps)) as found:
        yield found
    installed.cache_clear()


def test_what_was_acknowledged_outlives_a_killed_worker_and_a_killed_database(
    client: TestClient, database: PostgreSQL
) -> None:
    kept: list[dict[str, Any]] = []
    statuses: Counter[int] = Counter()
    ended = threading.Event()

    def load() -> None:
        while not ended.is_set():
            answer = client.post(PREDICT, files=[csv(1)])
            statuses[answer.status_code] += 1
            if answer.status_code == 200:
                kept.append(answer.json())
            else:
                assert answer.status_code == 503 and answer.headers["Retry-After"], answer.text

    def goes_on() -> None:
        before = len(kept)
        until(lambda: len(kept) > before + 4, 60)

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
    for case in kept:
        assert client.get(f"/api/fragile/cases/{case['case']}").json() == case
