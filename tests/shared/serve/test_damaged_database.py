"""A store whose database is locked by another program, or damaged: what the log and the commands say."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from shared import cli
from shared.serve.settings import Settings
from shared.store import database
from shared.store.cases import CaseStore
from shared.store.keys import Keys


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_BUSY_TIMEOUT", "busy_timeout = 100")


@contextmanager
def database_locked(store: Path) -> Iterator[None]:
    """Locks the database as another program that writes to it would."""
    with closing(sqlite3.connect(store / "trivium.sqlite", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


def damage(store: Path) -> None:
    """Overwrites all pages of the database except the first two."""
    file = store / "trivium.sqlite"
    content = file.read_bytes()
    file.write_bytes(content[:8192] + b"\xa5" * (len(content) - 8192))


def test_the_log_has_no_file_names_if_a_job_cannot_be_stored(
    serve: Callable[..., TestClient], settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    client = serve()
    with caplog.at_level(logging.DEBUG), database_locked(settings.store):
        response = client.post("/api/echo/jobs", files={"files": ("MUELLER^HANS.csv", b"1\n")})
    assert response.status_code == 503 and "cannot be reached at the moment" in response.json()["detail"]
    assert "locked" in caplog.text and "MUELLER" not in caplog.text


def test_a_path_cannot_inject_lines_into_the_log(
    serve: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = serve()

    def fail_with_reset(*_: object) -> None:
        raise ConnectionResetError("away")

    monkeypatch.setattr(CaseStore, "get", fail_with_reset)
    with caplog.at_level(logging.ERROR):
        response = client.get("/api/echo/cases/x%0AERROR: the disk burns%1B[31m")
    assert response.status_code == 503
    (line,) = caplog.messages
    assert line.splitlines() == [line] and r"x\nERROR: the disk burns\x1b[31m" in line


@pytest.fixture
def store_with_key(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with a key, store_with_key in the environment."""
    with closing(CaseStore(settings.store)) as store:
        Keys(store.engine).add("berta", "user")
    monkeypatch.setenv("TRIVIUM_STORE", str(settings.store))
    return settings.store


def told_in_a_sentence(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(words) == 1
    stderr = capsys.readouterr().err
    assert stderr.startswith("trivium: the store's database cannot be used (") and stderr.count("\n") == 1
    return stderr


def test_a_command_says_that_another_program_holds_the_database(
    store_with_key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with database_locked(store_with_key):
        assert "another program has locked it" in told_in_a_sentence(capsys, "keys", "add", "anna")


@pytest.mark.parametrize("command", [("keys", "add", "anna"), ("keys", "list"), ("serve", "--port", "0")])
def test_a_command_says_what_to_do_if_the_database_is_damaged(
    store_with_key: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    damage(store_with_key)
    assert "restore a backup into an empty store with `trivium restore`" in told_in_a_sentence(capsys, *command)
