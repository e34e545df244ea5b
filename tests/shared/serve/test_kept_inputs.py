"""With the setting, inputs are kept whole with their case, for ``trivium reviews``."""

from __future__ import annotations

import errno
import logging
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from shared import cli
from shared.app import App
from shared.serve.app import create_app
from shared.serve.settings import Settings, read_settings
from shared.store import later_files
from tests.shared.serve.echo import Echo, csv

Serve = Callable[..., TestClient]
usage = namedtuple("usage", "total used free")


def ask(client: TestClient, *numbers: float) -> str:
    found = client.post("/api/echo/predict", files=[csv(*numbers)], data={"later": "yes"})
    assert found.status_code == 200, found.text
    assert found.json()["remark"] is None
    return str(found.json()["case"])


def names(settings: Settings, case: str) -> set[str]:
    return {path.name for path in (settings.store / "cases" / case).iterdir()}


def stored(client: TestClient, case: str) -> bytes | None:
    """The content of the kept input of a case."""
    store = client.app.state.services["echo"].store  # type: ignore[attr-defined]
    place = store.kept_input(store.get("echo", case), "given")
    return None if place is None else place.read_bytes()


def test_inputs_are_not_kept_by_default(echo_client: TestClient, echo: Echo, settings: Settings) -> None:
    case = ask(echo_client, 1, 2)
    assert stored(echo_client, case) is None and echo.wrote_inputs == 0
    assert names(settings, case) == {"result.json", "doubled.csv", ".later.json", ".source-numbers"}


def test_inputs_are_kept_as_long_as_the_case_and_counted(serve: Serve, settings: Settings) -> None:
    client = serve(keep_inputs=True)
    case = ask(client, 1, 2)
    home = settings.store / "cases" / case
    for output in ("picture.png", "files/sum.txt"):
        assert client.get(f"/api/echo/cases/{case}/{output}").status_code == 200
    assert stored(client, case) == b"[1.0, 2.0]"
    assert {path.stat().st_mode & 0o777 for path in home.iterdir()} == {0o600}
    used_bytes = client.app.state.services["echo"].store.used_bytes("echo")  # type: ignore[attr-defined]
    assert used_bytes == sum(path.stat().st_size for path in home.iterdir())
    assert client.delete(f"/api/echo/cases/{case}").status_code == 204 and not home.exists()


def test_kept_inputs_are_not_served_over_http(serve: Serve) -> None:
    client = serve(keep_inputs=True)
    case = ask(client, 1, 2)
    listed = client.get(f"/api/echo/cases/{case}").json()["files"]
    assert list(listed) == ["result.json", "doubled.csv", "sum.txt"]
    for name in ("given", ".input-given"):
        assert client.get(f"/api/echo/cases/{case}/files/{name}").status_code == 404


def test_a_case_that_only_fits_without_its_inputs_is_kept_without(
    serve: Serve, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    client = serve(keep_inputs=True, keep_bytes=800)
    small, large = ask(client, 1), ask(client, *([1] * 50))
    assert stored(client, small) == b"[1.0]" and stored(client, large) is None
    assert names(settings, large) == {"result.json", "doubled.csv", ".later.json", ".source-numbers"}
    assert f"the inputs are not kept with case {large}: " in caplog.text and "KEEP_BYTES" in caplog.text


def test_a_case_is_kept_without_inputs_if_the_disk_has_no_space_for_them(
    serve: Serve, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client, write = serve(keep_inputs=True), later_files.write_private

    def nearly_full(path: Path, content: bytes) -> None:
        if path.name.startswith(".input-"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    monkeypatch.setattr(later_files, "write_private", nearly_full)
    with caplog.at_level(logging.WARNING, "trivium.store"):
        case = ask(client, 1, 2)
    assert names(settings, case) == {"result.json", "doubled.csv", ".later.json", ".source-numbers"}
    assert [path.name for path in (settings.store / "cases").iterdir()] == [case], "nothing half written is left"
    assert f"the inputs are not kept with case {case}: " in caplog.text and "disk of the store" in caplog.text


def test_the_client_is_answered_if_the_inputs_cannot_be_prepared(
    serve: Serve, echo: Echo, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> bytes:
        raise MemoryError("of Doe")

    monkeypatch.setattr(echo, "_given", fail)
    client = serve(keep_inputs=True)
    assert stored(client, ask(client, 1, 2)) is None
    assert "Echo: the analysed input is not kept: MemoryError" in caplog.text and "Doe" not in caplog.text


def test_inputs_do_not_fill_the_disk(
    serve: Serve, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client, total = serve(keep_inputs=True), 10**12
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(total, total - 64_000_010, 64_000_010))
    assert stored(client, ask(client, 1, 2)) is None and "would be full" in caplog.text
    assert client.get("/v2/health/ready").status_code == 200


def test_inputs_are_backed_up_and_purged_with_their_case(
    serve: Serve, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve(keep_inputs=True)
    with monkeypatch.context() as earlier:
        earlier.setattr("time.time_ns", lambda: 1_700_000_000 * 10**9)
        case = ask(client, 1, 2)
    store = ["--store", str(settings.store)]
    assert cli.main(["backup", str(tmp_path / "all.tar"), *store]) == 0
    assert cli.main(["purge", "--older-than", "30d", *store]) == 0
    assert not (settings.store / "cases" / case).exists()
    assert cli.main(["restore", str(tmp_path / "all.tar"), "--store", str(tmp_path / "other")]) == 0
    restored = tmp_path / "other" / "cases" / case / ".input-given"
    assert restored.read_bytes() == b"[1.0, 2.0]" and restored.stat().st_mode & 0o777 == 0o600


def test_a_worker_process_returns_inputs_too(tmp_path: Path, settings: Settings, fragile: dict[str, App]) -> None:
    worker_settings = settings.model_copy(update={"workers": 1, "registry": tmp_path / "registry", "keep_inputs": True})
    with TestClient(create_app(worker_settings, fragile)) as client:
        found = client.post("/api/fragile/predict", files=[csv(1)], data={"bytes": "100000"}).json()
    home = settings.store / "cases" / found["case"]
    assert (home / ".input-given").stat().st_size == (home / "large").stat().st_size == 100_000


def test_keep_inputs_is_an_environment_variable_and_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    started_with: list[Settings] = []
    monkeypatch.setattr("shared.serve.server.run", lambda settings, demo: started_with.append(settings))
    assert cli.main(["serve"]) == cli.main(["serve", "--keep-inputs"]) == 0
    monkeypatch.setenv("TRIVIUM_KEEP_INPUTS", "true")
    assert cli.main(["serve"]) == 0
    assert [settings.keep_inputs for settings in started_with] == [False, True, True] and read_settings().keep_inputs
