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
def held(store: Path) -> Iterator[None]:
    """Locks the database as another program that writes to it would."""
    with closing(sqlite3.connect(store / "trivium.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
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
    with caplog.at_level(logging.DEBUG), held(settings.store):
        answer = client.post("/api/echo/jobs", files={"files": ("MUELLER^HANS.csv", b"1\n")})
    assert answer.status_code == 503 and "cannot be reached at the moment" in answer.json()["detail"]
    assert "locked" in caplog.text and "MUELLER" not in caplog.text


def test_a_path_cannot_inject_lines_into_the_log(
    serve: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = serve()

    def away(*_: object) -> None:
        raise ConnectionResetError("away")

    monkeypatch.setattr(CaseStore, "get", away)
    with caplog.at_level(logging.ERROR):
        answer = client.get("/api/echo/cases/x%0AERROR: the disk burns%1B[31m")
    assert answer.status_code == 503
    (line,) = caplog.messages
    assert line.splitlines() == [line] and r"x\nERROR: the disk burns\x1b[31m" in line


@pytest.fixture
def named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with a key, named in the environment."""
    with closing(CaseStore(settings.store)) as store:
        Keys(store.engine).add("berta", "user")
    monkeypatch.setenv("TRIVIUM_STORE", str(settings.store))
    return settings.store


def told_in_a_sentence(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(words) == 1
    told = capsys.readouterr().err
    assert told.startswith("trivium: the store's database cannot be used (") and told.count("\n") == 1
    return told


def test_a_command_says_that_another_program_holds_the_database(
    named: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with held(named):
        assert "another program has locked it" in told_in_a_sentence(capsys, "keys", "add", "anna")


@pytest.mark.parametrize("command", [("keys", "add", "anna"), ("keys", "list"), ("serve", "--port", "0")])
def test_a_command_says_what_to_do_if_the_database_is_damaged(
    named: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    damage(named)
    assert "restore a backup into an empty store with `trivium restore`" in told_in_a_sentence(capsys, *command)
