"""What a client that waits for the models to be loaded is told, over HTTP, in a job and in the form."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Page, expect

from shared.app import App
from shared.progress import report_stage
from shared.serve.app import create_app
from shared.serve.settings import Settings
from tests.conftest import serving
from tests.shared.serve.echo import Echo, csv, until

TIMING = "timing the programs of echo, once on this machine"
STAGE = f"loading the model: {TIMING}"


@pytest.fixture
def loaded() -> threading.Event:
    """Lets the load of the model end."""
    return threading.Event()


@pytest.fixture
def slow_app(echo_app: App, echo: Echo, loaded: threading.Event) -> Iterator[App]:
    """The application ``echo``, whose load times programs until ``loaded`` is set."""

    def load(artifacts: Any, device: str) -> Echo:
        report_stage(TIMING)
        assert loaded.wait(60)
        return echo

    yield replace(echo_app, predictor=load)
    loaded.set()


def test_a_client_can_ask_what_its_first_prediction_waits_for(
    settings: Settings, slow_app: App, loaded: threading.Event
) -> None:
    with TestClient(create_app(settings, {"echo": slow_app})) as client, ThreadPoolExecutor(1) as pool:
        assert client.get("/api/echo/model").json() == {"predictor": "not loaded", "stage": None}
        first = pool.submit(client.post, "/api/echo/predict", files=[csv(1)])
        until(lambda: client.get("/api/echo/model").json() == {"predictor": "not loaded", "stage": STAGE})
        loaded.set()
        assert first.result().status_code == 200
        assert client.get("/api/echo/model").json() == {"predictor": "loaded", "stage": None}


def test_the_stage_of_a_job_says_what_loading_the_model_does(
    settings: Settings, slow_app: App, loaded: threading.Event
) -> None:
    with TestClient(create_app(settings, {"echo": slow_app})) as client:
        job = client.post("/api/echo/jobs", files=[csv(1)]).json()
        until(lambda: client.get(job["url"]).json()["stage"] == STAGE)
        loaded.set()
        until(lambda: client.get(job["url"]).json()["state"] == "done")


def test_a_job_after_one_that_was_cancelled_has_the_stage_of_the_load_that_continues(
    settings: Settings, slow_app: App, loaded: threading.Event
) -> None:
    with TestClient(create_app(settings, {"echo": slow_app})) as client:
        cancelled = client.post("/api/echo/jobs", files=[csv(1)]).json()
        until(lambda: client.get(cancelled["url"]).json()["stage"] == STAGE)
        assert client.delete(cancelled["url"]).is_success
        job = client.post("/api/echo/jobs", files=[csv(1)]).json()
        until(lambda: client.get(job["url"]).json()["stage"] == STAGE)
        loaded.set()
        until(lambda: client.get(job["url"]).json()["state"] == "done")


@pytest.mark.browser
def test_the_form_says_what_the_first_analysis_waits_for(
    page: Page, settings: Settings, slow_app: App, loaded: threading.Event
) -> None:
    page.clock.install()
    settings = settings.model_copy(update={"hosts": "", "deadline_s": 60})
    with serving(create_app(settings, {"echo": slow_app})) as address:
        page.goto(f"{address}/echo", wait_until="networkidle")
        page.get_by_role("button", name="Three numbers").click()
        status = page.get_by_role("status")
        expect(status).to_have_text("Working …")
        page.clock.run_for(5000)
        expect(status).to_have_text(re.compile(f"^L{STAGE[1:]} … [0-9]+ s$"))
        loaded.set()
        expect(page.get_by_role("region", name="Result").locator("pre")).to_contain_text("6")
        page.goto("about:blank")  # the page asks for nothing more while the server ends
