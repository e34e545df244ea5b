"""Fixtures that every test may ask for: real data, a server, a browser."""

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

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Response, expect, sync_playwright

from shared.app import installed
from shared.deploy.programs.of_artifact import onnx_file
from shared.deploy.registry import shipped
from shared.serve.app import create_app
from shared.serve.server import listen
from shared.serve.settings import Settings

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_PATIENCE_MS = 30_000
"""The longest wait on a page: what is expected has 5 s by Playwright's default, which a busy machine exceeds."""
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Graphics in software, so that the viewers' WebGL 2 works without a GPU.
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collects the tests without the garbage collector.

    Imported libraries are a million objects and more that stay, and it would look through them again and again: a
    fourth of the time.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="module", autouse=True)
def set_what_is_loaded_apart() -> None:
    """What earlier modules of tests have imported is not looked through by the garbage collector any more."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def programs_of_tests() -> Iterator[None]:
    """Predictors compute with torch unless a test asks for another program, and measure nothing of this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIVIUM_PROGRAM", os.environ.get("TRIVIUM_PROGRAM", "torch"))
        yield


@pytest.fixture(autouse=True)
def log_that_pytest_reads(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A server or a library in this process may have changed the log in an earlier test."""
    for name in ("trivium", "trivium.access"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    logging.getLogger("trivium").setLevel(logging.NOTSET)  # loggers forget which levels they found to be off, too
    caplog.handler.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def networks_of_shipped() -> None:
    """Every shipped network as ONNX, in the cache where the artifact has none; that takes a minute once."""
    for app in installed().values():
        for artifact in shipped(app):
            onnx_file(artifact)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the real samples."""
    named = os.environ.get("TRIVIUM_DATA")
    if not named or not Path(named).is_dir():
        pytest.skip("the real samples are not at hand: TRIVIUM_DATA names no folder")
    return Path(named)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    """A client of a server of its own, with the installed applications and an empty store."""
    with TestClient(create_app(Settings(store=tmp_path / "store", warm=False, device="cpu", workers=0))) as found:
        yield found


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with the installed applications; all tests of a session share it."""
    store = tmp_path_factory.mktemp("server") / "store"
    with serving(create_app(Settings(store=store, warm=False, device="cpu"))) as address:
        yield address


class serving:  # noqa: N801 - used as a function, in a with statement
    """Serves an application on a free port of the loopback device, on a thread; gives its address."""

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
    """Chromium, without a window. ``CHROMIUM`` is the one that the system has.

    One for each module: while Playwright runs, its event loop stands in the way of ``asyncio.run`` in other tests.
    """
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=_FLAGS)
        expect.set_options(timeout=_PATIENCE_MS)
        yield found
        found.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page as ``watched_page`` gives it."""
    with watched_page(browser) as found:
        yield found


@contextmanager
def watched_page(browser: Browser, **options: Any) -> Iterator[Page]:
    """A page, of a context with these options, that fails the test for an error in its console, an uncaught exception,
    or a request that failed.

    A request to another host than the loopback device fails it too, whether answered or not. Where a test provokes
    an error, it says so: ``page.expected_errors.append("422")`` lets what contains the text pass.
    """
    context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
    found = context.new_page()
    found.set_default_timeout(_PATIENCE_MS)
    faults: list[str] = []
    expected: list[str] = []
    found.expected_errors = expected  # type: ignore[attr-defined]

    def on_console(message: ConsoleMessage) -> None:
        if message.type == "error":
            faults.append(f"console: {message.text} ({message.location.get('url', '')})")

    def on_request(request: Request) -> None:
        if request.url.startswith(("http:", "https:", "ws:", "wss:")) and "//127.0.0.1:" not in request.url:
            faults.append(f"a request left the machine: {request.url}")

    def on_failed(request: Request) -> None:
        # A navigation cuts off what is still on its way.
        if request.failure != "net::ERR_ABORTED":
            faults.append(f"failed: {request.method} {request.url}: {request.failure}")

    def on_response(response: Response) -> None:
        if response.status >= 400:
            faults.append(f"{response.status}: {response.request.method} {response.url}")

    found.on("console", on_console)
    found.on("pageerror", lambda error: faults.append(f"exception: {error}"))
    found.on("request", on_request)
    found.on("requestfailed", on_failed)
    found.on("response", on_response)
    yield found
    context.close()
    left = [fault for fault in faults if not any(text in fault for text in expected)]
    assert not left, "\n".join(left)
