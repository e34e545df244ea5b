"""Event streams: limits on their number, and their end when the server stops."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2 as httpx
import pytest

from shared.app import App
from shared.serve import app as building
from shared.serve.app import create_app
from shared.serve.settings import Settings
from shared.store.keys import Keys
from tests.conftest import serving
from tests.shared.serve.echo import Echo, until
from tests.shared.serve.test_draining import Process

JOBS = "/api/echo/jobs"


@pytest.fixture
def address(settings: Settings, echo_app: App, echo: Echo, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that allows two event streams per address, and three in total."""
    monkeypatch.setattr(building, "_MAX_EVENT_STREAMS", 3)
    echo.gate.clear()
    server = create_app(settings.model_copy(update={"hosts": None, "max_per_client": 2}), {"echo": echo_app})
    with serving(server, proxy_headers=True) as found:
        yield found
        echo.gate.set()


def test_event_streams_are_limited_per_client_and_in_total(address: str) -> None:
    job = httpx.post(address + JOBS, data={"sample": "three"}).json()
    url = address + job["events"]
    with ExitStack() as stack:

        def follow(client: str) -> httpx.Response:
            headers = {"X-Forwarded-For": client}
            return stack.enter_context(httpx.stream("GET", url, headers=headers, timeout=60))

        first, second = follow("10.0.0.1"), follow("10.0.0.1")
        response = follow("10.0.0.1")
        assert response.status_code == 429 and int(response.headers["Retry-After"]) > 0
        assert "TRIVIUM_MAX_PER_CLIENT" in json.loads(response.read())["detail"]
        assert [stream.status_code for stream in (first, second, follow("10.0.0.2"))] == [200] * 3
        response = follow("10.0.0.3")
        assert response.status_code == 503 and int(response.headers["Retry-After"]) > 0
        first.close()
        until(lambda: follow("10.0.0.3").status_code == 200)
    assert httpx.get(address + job["url"]).status_code == 200


def test_one_group_cannot_take_all_event_streams(
    settings: Settings, echo_app: App, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "_MAX_EVENT_STREAMS", 4)
    echo.gate.clear()
    server = create_app(settings.model_copy(update={"hosts": None, "require_key": True}), {"echo": echo_app})
    keys = Keys(server.state.store.engine)
    desk, lab = ({"X-Api-Key": keys.add(group, "user", group)} for group in ("desk", "lab"))
    with serving(server) as address, ExitStack() as stack:
        stack.callback(echo.gate.set)

        def follow(header: dict[str, str]) -> httpx.Response:
            job = httpx.post(address + JOBS, data={"sample": "three"}, headers=header).json()
            return stack.enter_context(httpx.stream("GET", address + job["events"], headers=header, timeout=20))

        assert [follow(desk).status_code for _ in range(3)] == [200] * 3
        response = follow(desk)
        assert response.status_code == 503 and "of the group desk" in json.loads(response.read())["detail"]
        assert follow(lab).status_code == 200


def test_event_streams_end_without_an_error_when_the_server_stops(tmp_path: Path) -> None:
    server = Process(tmp_path, drain_s=60)
    job = httpx.post(server.address + JOBS, data={"sample": "three"}).json()
    with httpx.stream("GET", server.address + job["events"], timeout=60) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("event: ")
        server.process.send_signal(signal.SIGTERM)
        for _ in lines:
            pass
    server.compute()
    assert "ERROR" not in server.end()
