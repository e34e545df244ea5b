"""An outage of the database: what is attempted every few seconds is logged once, and again when it succeeds."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.exc import DBAPIError

from shared.serve.runtime import job_runner
from shared.store.jobs import JobStore
from shared.store.promotions import Promotions
from tests.shared.serve.echo import csv, until

STARTING = {"S": "FATAL", "C": "57P03", "M": "the database system is starting up"}


class ProgrammingError(Exception):
    """As pg8000 raises it, with PostgreSQL's fields of the error."""

    __module__ = "pg8000.dbapi"


class Outage:
    """Makes a method of the store fail while ``lasts``, and counts its calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, method: str) -> None:
        self.lasts, self.calls = True, 0
        original = getattr(owner, method)

        def failing(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.lasts:
                raise DBAPIError("SELECT", None, ProgrammingError(STARTING))
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, method, failing)


def test_an_outage_is_logged_once_and_so_is_its_end(
    serve: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(job_runner, "_POLL_INTERVAL_S", 0.01)
    caplog.set_level(logging.INFO, "trivium.serve")
    client = serve()
    outages = [Outage(monkeypatch, JobStore, "claim"), Outage(monkeypatch, Promotions, "live")]
    follow_once = client.app.state.live_versions.follow_once  # type: ignore[attr-defined]
    for _ in range(3):
        client.portal.call(follow_once)  # type: ignore[union-attr]
    until(lambda: outages[0].calls > 3)
    for outage in outages:
        outage.lasts = False
    client.portal.call(follow_once)  # type: ignore[union-attr]
    recovered = ["the jobs of echo are claimed again", "follows the live versions in the store again"]
    until(lambda: all(message in caplog.messages for message in recovered))
    assert client.post("/api/echo/jobs", files=[csv(1)]).status_code == 202
    failed = ["the jobs of echo cannot be claimed", "cannot follow the live versions in the store"]
    expected = [f"{message}: the database system is starting up" for message in failed]
    errors = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert sorted(record.getMessage() for record in errors) == sorted(expected)
    assert not any(record.exc_info for record in errors)


def test_what_libraries_log_is_json_too_if_set() -> None:
    program = (
        "import logging.config; from shared.serve.server import log_config\n"
        "logging.config.dictConfig(log_config(quiet=False, as_json=True))\n"
        "logging.getLogger('sqlalchemy.pool').error('a connection is lost')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    line = json.loads(done.stderr)
    assert (line["level"], line["message"]) == ("ERROR", "a connection is lost")
