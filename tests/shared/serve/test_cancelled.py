"""Jobs that are cancelled while a worker reads their files."""

from __future__ import annotations

import logging
import threading

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
