"""A server with the application ``echo``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from shared.app import App, installed
from shared.serve.app import create_app
from shared.serve.settings import Settings
from tests.shared.serve.echo import Echo, make_app, write_artifact


@pytest.fixture
def echo() -> Echo:
    """The predictor that the server uses, with its gate open."""
    predictor = Echo()
    predictor.gate.set()
    return predictor


@pytest.fixture
def echo_app(tmp_path: Path, echo: Echo) -> App:
    """The application ``echo``."""
    return make_app(tmp_path / "echo", echo)


@pytest.fixture
def fragile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, App]]:
    """The application ``fragile``, installed like a separate package, so that other processes can import it.

    Also ``steady``, the same application under another name.
    """
    package = tmp_path / "packages" / "fragile-1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: fragile\nVersion: 1\n")
    points = {"fragile": "tests.shared.serve.fragile:app", "steady": "tests.shared.serve.fragile:steady"}
    (package / "entry_points.txt").write_text("[trivium.apps]\n" + "".join(f"{n} = {p}\n" for n, p in points.items()))
    monkeypatch.syspath_prepend(package.parent)
    installed.cache_clear()
    write_artifact(tmp_path / "registry", 1, app="fragile")
    yield {"fragile": installed()["fragile"]}
    installed.cache_clear()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with small limits."""
    return Settings(
        hosts="testserver",
        store=tmp_path / "store",
        device="cpu",
        workers=0,
        max_batch_s=60,
        warm=False,
        max_upload_bytes=200_000,
        max_tensor_bytes=100_000,
        max_files=5,
        queue_length=32,
        max_batch=8,
        deadline_s=20,
    )


@pytest.fixture
def serve(settings: Settings, echo_app: App) -> Iterator[Callable[..., TestClient]]:
    """A function that returns a client of a server with the application, with the given changes to the settings."""
    opened: list[TestClient] = []

    def make(**changes: Any) -> TestClient:
        server = create_app(settings.model_copy(update=changes), {"echo": echo_app})
        opened.append(TestClient(server).__enter__())
        return opened[-1]

    yield make
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture
def echo_client(serve: Callable[..., TestClient]) -> TestClient:
    """A client of a server with the unchanged settings."""
    return serve()
