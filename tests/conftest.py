"""Fixtures for all tests: real data, a server, a browser."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Response, expect, sync_playwright

from shared.app import installed
from shared.deploy.programs.artifact_network import onnx_file
from shared.deploy.registry import shipped
from shared.serve.app import create_app
from shared.serve.server import listen
from shared.serve.settings import Settings

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_PAGE_TIMEOUT_MS = 120_000
"""Timeout of page operations and expectations, for all tests. Playwright's defaults of 30 s and 5 s are too short on a
busy machine, where a click alone waited for 30 s for the page to change its hash."""
_CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Software rendering, so that WebGL 2 in the viewers works without a GPU.
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]


# Hypothesis would fail an example that takes longer than 0.2 s, as any may on a busy machine.
hypothesis.settings.register_profile("no deadline", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("no deadline")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collects the tests with the garbage collector off.

    The imported libraries are more than a million permanent objects. Scanning them repeatedly takes a quarter of the
    time of collecting the tests.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="module", autouse=True)
def freeze_imported_objects() -> None:
    """Excludes objects that earlier test modules imported from garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def torch_as_default_program() -> Iterator[None]:
    """Predictors compute with torch unless a test asks for another program, so no programs are timed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIVIUM_PROGRAM", os.environ.get("TRIVIUM_PROGRAM", "torch"))
        yield


@pytest.fixture(autouse=True)
def log_for_caplog(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Resets logging, which a server or a library in this process may have configured in an earlier test."""
    for name in ("trivium", "trivium.access"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    logging.getLogger("trivium").setLevel(logging.NOTSET)  # also clears the loggers' cache of disabled levels
    caplog.handler.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def networks_of_shipped() -> None:
    """Exports every shipped network that has no ONNX file in its artifact, into the cache; takes seconds once."""
    for app in installed().values():
        for artifact in shipped(app):
            onnx_file(artifact)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with the real samples; skips the test if there is none."""
    folder = os.environ.get("TRIVIUM_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("no real samples: TRIVIUM_DATA is not set to an existing folder")
    return Path(folder)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    """A client of a new server with the installed applications and an empty store."""
    with TestClient(create_app(Settings(store=tmp_path / "store", warm=False, device="cpu", workers=0))) as test_client:
        yield test_client


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with the installed applications, shared by all tests of a session."""
    store = tmp_path_factory.mktemp("server") / "store"
    with serving(create_app(Settings(store=store, warm=False, device="cpu"))) as address:
        yield address


class serving:  # noqa: N801 - used as a function, in a with statement
    """Serves an application in a thread, on a free port of the loopback interface. The context is its address."""

    def __init__(self, application: FastAPI, **options: Any) -> None:
        self._listener = listen("127.0.0.1", 0)
        config = uvicorn.Config(application, log_config=None, access_log=False, timeout_graceful_shutdown=1, **options)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._listener]}, name="server", daemon=True
        )

    def __enter__(self) -> str:
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the server ended while it was starting"
            time.sleep(0.01)
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)
        self._listener.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium (``CHROMIUM``), headless.

    One per module, because ``asyncio.run`` in other tests fails while Playwright's event loop runs.
    """
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=_CHROMIUM_FLAGS)
        expect.set_options(timeout=_PAGE_TIMEOUT_MS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that fails the test on errors; see ``watched_page``."""
    with watched_page(browser) as opened:
        yield opened


@contextmanager
def watched_page(browser: Browser, **options: Any) -> Iterator[Page]:
    """A page in a new browser context with these options.

    The test fails if the page logs an error to its console, raises an uncaught exception, or has a request that fails
    or leaves the loopback interface. A test that provokes errors names them: after
    ``page.expected_errors.append("422")``, errors that contain the text are allowed.
    """
    context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
    context.set_default_timeout(_PAGE_TIMEOUT_MS)
    opened = context.new_page()
    errors: list[str] = []
    expected: list[str] = []
    opened.expected_errors = expected  # type: ignore[attr-defined]

    def on_console(message: ConsoleMessage) -> None:
        if message.type == "error":
            errors.append(f"console: {message.text} ({message.location.get('url', '')})")

    def on_request(request: Request) -> None:
        if request.url.startswith(("http:", "https:", "ws:", "wss:")) and "//127.0.0.1:" not in request.url:
            errors.append(f"a request left the machine: {request.url}")

    def on_failed(request: Request) -> None:
        # A navigation aborts requests that are still in flight.
        if request.failure != "net::ERR_ABORTED":
            errors.append(f"failed: {request.method} {request.url}: {request.failure}")

    def on_response(response: Response) -> None:
        if response.status >= 400:
            errors.append(f"{response.status}: {response.request.method} {response.url}")

    opened.on("console", on_console)
    opened.on("pageerror", lambda error: errors.append(f"exception: {error}"))
    opened.on("request", on_request)
    opened.on("requestfailed", on_failed)
    opened.on("response", on_response)
    yield opened
    context.close()
    unexpected = [error for error in errors if not any(text in error for text in expected)]
    assert not unexpected, "\n".join(unexpected)


@pytest.fixture
def empty_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache folder, so that packs are built anew."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
