"""A store as one file, and back."""

from __future__ import annotations

import io
import tarfile
from contextlib import closing
from pathlib import Path

import pytest

from shared import cli
from shared.errors import InvalidInputError
from shared.store.backup import ROWS, restore
from shared.store.cases import CaseStore
from tests.shared.store.test_cases import keep


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A store with two cases, named in the environment, and a folder for another."""
    monkeypatch.setenv("TRIVIUM_STORE", str(tmp_path / "store"))
    return tmp_path / "store", tmp_path / "other"


def test_a_backup_of_a_store_in_use_is_restored_whole(
    stores: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    here, there = stores
    with closing(CaseStore(here)) as serving:
        kept = [keep(serving), keep(serving, app="other", files={"a b.csv": b"2"})]
        assert cli.main(["backup", str(tmp_path / "all.tar")]) == 0
        assert "2 cases" in capsys.readouterr().out
        assert cli.main(["backup", str(tmp_path / "all.tar")]) == 2
    assert (tmp_path / "all.tar").stat().st_mode & 0o077 == 0
    monkeypatch.setenv("TRIVIUM_STORE", str(there))
    assert cli.main(["restore", str(tmp_path / "all.tar")]) == 0
    with closing(CaseStore(there)) as store:
        assert [store.get(case.app, case.id) for case in kept] == kept
        found = store.file(kept[1], "a b.csv")
        assert found is not None and found.read_bytes() == b"2"
        assert found.stat().st_mode & 0o077 == found.parent.stat().st_mode & 0o077 == 0
    capsys.readouterr()
    assert cli.main(["restore", str(tmp_path / "all.tar")]) == 2
    assert "holds cases or jobs" in capsys.readouterr().err


def test_old_cases_are_purged_while_a_server_goes_on(
    stores: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(CaseStore(stores[0])) as serving:
        with monkeypatch.context() as earlier:
            earlier.setattr("time.time_ns", lambda: 1_700_000_000 * 10**9)
            old = keep(serving)
        new = keep(serving)
        assert cli.main(["purge", "--older-than", "30d"]) == 0
        assert "echo: 1 cases deleted" in capsys.readouterr().out
        assert [case.id for case in serving.recent("echo")] == [new.id] and serving.file(old, "out.csv") is None
        assert cli.main(["purge", "--older-than", "a month"]) == 2


@pytest.mark.parametrize("name", ["../escaped", "cases/" + "a" * 32 + "/../../escaped", "/etc/escaped", "other/file"])
def test_a_file_that_would_leave_the_store_is_refused(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        member = tarfile.TarInfo(name)
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    with closing(CaseStore(tmp_path / "store")) as store, pytest.raises(InvalidInputError):
        restore(store.engine, store.folder, tmp_path / "bad.tar")
    assert not (tmp_path / "escaped").exists() and not (tmp_path / "store" / "escaped").exists()


@pytest.mark.parametrize("content", [b"", b"no tar", None])
def test_what_is_no_backup_is_refused(tmp_path: Path, content: bytes | None) -> None:
    source = tmp_path / "bad.tar"
    if content is None:
        with tarfile.open(source, "w") as archive:
            member = tarfile.TarInfo(ROWS)
            member.size = 2
            archive.addfile(member, io.BytesIO(b"{}"))
    else:
        source.write_bytes(content)
    with closing(CaseStore(tmp_path / "store")) as store, pytest.raises(InvalidInputError):
        restore(store.engine, store.folder, source)
