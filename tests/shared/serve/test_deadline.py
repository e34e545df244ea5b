"""The deadline covers a request from the end of its upload until its case is kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from shared.app import App
from shared.errors import InvalidInputError
from shared.serve import service
from shared.serve.app import create_app
from shared.serve.runtime.limits import within_deadline
from shared.serve.settings import Settings
from shared.store.cases import CaseStore
from tests.shared.serve.echo import Echo, csv, until

Serve = Callable[..., TestClient]
PREDICT = "/api/echo/predict"


def loaded(client: TestClient) -> TestClient:
    """A client whose server has loaded the predictor, because loading would count towards the deadline."""
    until(lambda: client.post(PREDICT, data={"sample": "unknown"}).status_code == 422)
    return client


@pytest.mark.parametrize("step", ["decode", "encode"])
def test_a_step_past_the_deadline_is_answered_with_504(
    serve: Serve, echo: Echo, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    go, original = threading.Event(), getattr(echo, step)

    entered = threading.Event()

    def wait_for_go(*arguments: Any) -> Any:
        entered.set()
        assert go.wait(20)
        return original(*arguments)

    monkeypatch.setattr(echo, step, wait_for_go)
    client = loaded(serve(deadline_s=0.5))
    response = client.post(PREDICT, files=[csv(1)])
    assert response.status_code == 504 and "deadline" in response.json()["detail"]
    assert entered.wait(20)
    go.set()
    assert client.get("/api/echo/cases").json()["cases"] == []


def test_a_case_that_is_stored_after_the_deadline_is_removed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    go, done, add, remove = threading.Event(), threading.Event(), CaseStore.add, CaseStore.remove
    added: list[Any] = []

    def add_late(self: CaseStore, **arguments: Any) -> Any:
        assert go.wait(20)
        added.append(add(self, **arguments))
        return added[-1]

    def removed(self: CaseStore, case: Any) -> None:
        remove(self, case)
        done.set()

    def expire_soon(_: float, make_error: Callable[[], InvalidInputError]) -> AbstractAsyncContextManager[None]:
        return within_deadline(time.monotonic() + 0.05, make_error)

    # Only the time for storing is short, so that a slow machine also reaches it.
    monkeypatch.setattr(service, "within_deadline", expire_soon)
    monkeypatch.setattr(CaseStore, "add", add_late)
    monkeypatch.setattr(CaseStore, "remove", removed)
    client = serve(deadline_s=60)
    assert client.post(PREDICT, files=[csv(1)]).status_code == 504
    go.set()
    assert done.wait(20)
    assert len(added) == 1 and client.get("/api/echo/cases").json()["cases"] == []
    assert client.get(f"/api/echo/cases/{added[0].id}/files/result.json").status_code == 404


def test_an_answer_is_sent_before_later_requests_are_computed(
    serve: Serve, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, decode, go = 8, echo.decode, threading.Event()
    echo.batching = False

    def decode_late(request: Any) -> Any:
        if request.files[0].read_text() != "0":
            assert go.wait(20)
        return decode(request)

    monkeypatch.setattr(echo, "decode", decode_late)
    client = loaded(serve())
    with ThreadPoolExecutor(number) as pool:
        first = pool.submit(client.post, PREDICT, files=[csv(0)])
        until(echo.entered.is_set)
        others = [pool.submit(client.post, PREDICT, files=[csv(n)]) for n in range(1, number)]
        try:
            assert first.result(timeout=10).status_code == 200
            assert not any(future.done() for future in others)
        finally:
            go.set()
        assert all(future.result().status_code == 200 for future in others)


def test_a_request_that_the_load_outlasts_is_told_what_it_waits_for(settings: Settings, echo_app: App) -> None:
    go = threading.Event()

    def load_late(artifacts: Any, device: str) -> Any:
        assert go.wait(20)
        raise InvalidInputError("it is too late")

    server = create_app(
        settings.model_copy(update={"deadline_s": 0.2}), {"echo": replace(echo_app, predictor=load_late)}
    )
    with TestClient(server) as client:
        try:
            response = client.post(PREDICT, files=[csv(1)])
        finally:
            go.set()
    assert response.status_code == 503 and response.headers["Retry-After"] == "30"
    assert "first start on a machine times each network's programs, once; try again in 30" in response.json()["detail"]
