"""Jobs that are cancelled, and cases that are deleted, while their files are about to be read."""

from __future__ import annotations

import logging
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastapi.testclient import TestClient

from shared.deploy.predictor import Decoded, Request
from shared.serve.settings import Settings
from tests.shared.serve.echo import Echo, Numbers, csv, until

JOBS = "/api/echo/jobs"


def test_a_job_cancelled_while_its_files_are_read_is_not_logged_as_a_fault(
    echo_client: TestClient,
    echo: Echo,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    is_reading, is_cancelled, decode = threading.Event(), threading.Event(), echo.decode

    def decode_when_cancelled(request: Request) -> Decoded[Numbers]:
        is_reading.set()
        assert is_cancelled.wait(60)
        return decode(request)

    monkeypatch.setattr(echo, "decode", decode_when_cancelled)
    job = echo_client.post(JOBS, files=[csv(1)]).json()
    assert is_reading.wait(60)
    assert echo_client.delete(job["url"]).json()["state"] == "cancelled"
    until(lambda: not any((settings.store / "jobs").iterdir()))
    is_cancelled.set()
    next_job = echo_client.post(JOBS, files=[csv(2)]).json()
    until(lambda: echo_client.get(next_job["url"]).json()["state"] == "done")  # by the same worker
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_a_file_of_a_case_that_is_deleted_meanwhile_is_refused_and_not_a_fault(
    echo_client: TestClient, echo: Echo, caplog: pytest.LogCaptureFixture
) -> None:
    case = echo_client.post("/api/echo/predict", files=[csv(1)], data={"later": "yes"}).json()
    echo.gate.clear()
    echo.entered.clear()
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(echo_client.post, "/api/echo/predict", files=[csv(2)])
        assert echo.entered.wait(60)
        picture = pool.submit(echo_client.get, case["picture"])
        until(lambda: 'nv_inference_pending_request_count{model="echo",version="2"} 1.0' in metrics(echo_client))
        assert echo_client.delete(case["url"]).status_code == 204
        echo.gate.set()
        assert (running.result().status_code, picture.result().status_code) == (200, 404)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=0-1"}])
def test_a_file_of_a_case_that_is_deleted_before_it_is_opened_is_refused_and_not_a_fault(
    echo_client: TestClient,
    headers: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    case = echo_client.post("/api/echo/predict", files=[csv(1)]).json()
    open_file = anyio.open_file

    async def open_after_deletion(path: Path, **options: Any) -> Any:
        shutil.rmtree(path.parent)
        return await open_file(path, **options)

    monkeypatch.setattr(anyio, "open_file", open_after_deletion)
    response = echo_client.get(case["files"]["doubled.csv"], headers=headers)
    assert response.status_code == 404 and "is gone from the store" in response.json()["detail"]
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def metrics(client: TestClient) -> str:
    return client.get("/metrics").text
