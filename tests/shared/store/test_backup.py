"""Backup of a store to one file, and restoring it."""

from __future__ import annotations

import io
import shutil
import tarfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest

from shared import cli
from shared.errors import InvalidInputError
from shared.review import Review
from shared.store.backup import ROWS, backup, restore
from shared.store.cases import CaseStore
from shared.store.jobs import Job, JobStore, NewJob
from shared.store.keys import Keys
from shared.store.records import Origin
from tests.shared.store.test_cases import keep


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A store with two cases, named in the environment, and a folder for another."""
    monkeypatch.setenv("TRIVIUM_STORE", str(tmp_path / "store"))
    return tmp_path / "store", tmp_path / "other"


def test_a_backup_of_a_store_in_use_restores_completely(
    stores: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    here, there = stores
    with closing(CaseStore(here)) as serving:
        cases = [keep(serving), keep(serving, app="other", files={"a b.csv": b"2"})]
        assert cli.main(["backup", str(tmp_path / "all.tar")]) == 0
        assert "2 cases" in capsys.readouterr().out
        assert cli.main(["backup", str(tmp_path / "all.tar")]) == 2
    assert (tmp_path / "all.tar").stat().st_mode & 0o077 == 0
    monkeypatch.setenv("TRIVIUM_STORE", str(there))
    assert cli.main(["restore", str(tmp_path / "all.tar")]) == 0
    with closing(CaseStore(there)) as store:
        assert [store.get(case.app, case.id) for case in cases] == cases
        found = store.file(cases[1], "a b.csv")
        assert found is not None and found.read_bytes() == b"2"
        assert found.stat().st_mode & 0o077 == found.parent.stat().st_mode & 0o077 == 0
    capsys.readouterr()
    assert cli.main(["restore", str(tmp_path / "all.tar")]) == 2
    assert "has cases or jobs" in capsys.readouterr().err


def test_a_backup_contains_the_reviews_of_its_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    review = Review(reviewer="Ada", reviewed_ns=7, verdicts={2: "rejected"}, missed=[{"x": 1.5}], note="blurred")
    with closing(CaseStore(tmp_path / "store")) as store:
        kept, gone = keep(store), keep(store)
        for case in (kept, gone):
            store.reviews.put(case.id, review)
        shutil.rmtree(tmp_path / "store" / "cases" / gone.id)  # as if it was deleted while the backup is written
        assert backup(store.engine, store.folder, tmp_path / "all.tar") == 1
    with closing(CaseStore(tmp_path / "other")) as store:
        assert restore(store.engine, store.folder, tmp_path / "all.tar") == 1
        assert store.reviews.of_app("echo") == {kept.id: [replace(review, missed=({"x": 1.5},))]}


def add_job(jobs: JobStore, folder: Path, group: str | None = None) -> Job:
    uploads = folder / "uploads"
    uploads.mkdir()
    (uploads / "a.csv").write_bytes(b"1")
    job = NewJob(app="echo", origin=Origin("json", group), files=[uploads / "a.csv"], options={}, sample=None)
    return jobs.add(job, uploads)


def test_a_case_whose_files_are_generated_during_the_backup_is_included(
    stores: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = stores
    outputs = {"picture": b"", "later": {"picture.png": ("pixels",)}, "sources": {"pixels": b"2"}}
    with closing(CaseStore(here)) as serving:
        case = keep(serving, **outputs)
        opened = tarfile.bltn_open

        def generate_picture_and_open(path: str, mode: str) -> IO[bytes]:
            if path.endswith(".source-pixels"):
                serving.keep(case, "picture.png", b"png")
            return opened(path, mode)

        monkeypatch.setattr(tarfile, "bltn_open", generate_picture_and_open)
        assert backup(serving.engine, serving.folder, tmp_path / "all.tar") == 1
    monkeypatch.undo()
    with closing(CaseStore(there)) as store:
        assert restore(store.engine, store.folder, tmp_path / "all.tar") == 1
        picture = store.file(case, "picture.png")
        assert picture is not None and picture.read_bytes() == b"png"


def test_a_job_that_ends_during_the_backup_is_included_with_its_case(
    stores: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = stores
    with closing(CaseStore(here)) as serving:
        jobs = JobStore(serving.engine, serving.folder, server="one")
        job, waiting = add_job(jobs, tmp_path), add_job(jobs, tmp_path)
        opened = tarfile.bltn_open

        def end_job_and_open(path: str, mode: str) -> IO[bytes]:
            file = opened(path, mode)
            if job.id in path and (claimed := jobs.claim("echo", 0, 3)) is not None:
                jobs.mark_done(claimed, keep(serving).id)
            return file

        monkeypatch.setattr(tarfile, "bltn_open", end_job_and_open)
        assert backup(serving.engine, serving.folder, tmp_path / "all.tar") == 1
    monkeypatch.undo()
    with closing(CaseStore(there)) as store:
        assert restore(store.engine, store.folder, tmp_path / "all.tar") == 1
        restored = JobStore(store.engine, store.folder, server="two")
        ended = restored.get("echo", job.id)
        assert ended is not None and ended.state == "done"
        assert ended.case_id is not None and store.get("echo", ended.case_id) is not None
        assert [path.name for path in (there / "jobs").iterdir()] == [waiting.id], "an ended job has no files"


def test_a_missing_store_is_refused_and_not_created(
    stores: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["backup", str(tmp_path / "all.tar")], ["purge", "--older-than", "30d"]):
        assert cli.main(command) == 2
        assert f"there is no store in {stores[0]}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_backup_that_cannot_be_written_is_refused(
    stores: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(CaseStore(stores[0])) as serving:
        keep(serving)
        assert cli.main(["backup", str(tmp_path / "nowhere" / "all.tar")]) == 2
    assert "cannot be written: No such file or directory" in capsys.readouterr().err


def test_old_cases_are_purged_while_a_server_runs(
    stores: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(CaseStore(stores[0])) as serving:
        with monkeypatch.context() as earlier:
            earlier.setattr("time.time_ns", lambda: 1_700_000_000 * 10**9)
            old = keep(serving)
        new = keep(serving)
        jobs = JobStore(serving.engine, serving.folder, server="one")
        with monkeypatch.context() as earlier:
            earlier.setattr("time.time_ns", lambda: 1_700_000_000 * 10**9)
            ended, waiting = add_job(jobs, tmp_path), add_job(jobs, tmp_path)
            assert jobs.cancel(ended)
        assert cli.main(["purge", "--older-than", "30d"]) == 0
        assert "echo: 1 cases and 1 ended jobs deleted" in capsys.readouterr().out
        assert [job.id for job in jobs.recent("echo")] == [waiting.id]
        assert [case.id for case in serving.recent("echo")] == [new.id] and serving.file(old, "out.csv") is None
        assert cli.main(["purge", "--older-than", "a month"]) == 2


def test_a_purge_of_a_group_leaves_the_cases_and_jobs_of_others(
    stores: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(CaseStore(stores[0])) as serving:
        jobs = JobStore(serving.engine, serving.folder, server="one")
        with monkeypatch.context() as earlier:
            earlier.setattr("time.time_ns", lambda: 1_700_000_000 * 10**9)
            for group in ("radiology", "oncology", None):
                keep(serving, group=group)
                assert jobs.cancel(add_job(jobs, tmp_path, group))
        Keys(serving.engine).add("cardiology-1", "user", "cardiology")
        assert cli.main(["purge", "--older-than", "30d", "--group", "radiolgy"]) == 2
        problem = " ".join(capsys.readouterr().err.split())
        assert "no group 'radiolgy'; its groups are cardiology, oncology, radiology" in problem
        assert cli.main(["purge", "--older-than", "30d", "--group", "cardiology"]) == 0
        assert "echo: 0 cases and 0 ended jobs deleted" in capsys.readouterr().out
        assert cli.main(["purge", "--older-than", "30d", "--group", "radiology"]) == 0
        assert "echo: 1 cases and 1 ended jobs deleted" in capsys.readouterr().out
        assert serving.kept_by_group("echo").keys() == {"oncology", None}
        assert {job.group for job in jobs.recent("echo")} == {"oncology", None}


@pytest.mark.parametrize("name", ["../escaped", "cases/" + "a" * 32 + "/../../escaped", "/etc/escaped", "other/file"])
def test_an_archive_member_outside_the_store_is_refused(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        member = tarfile.TarInfo(name)
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    with closing(CaseStore(tmp_path / "store")) as store, pytest.raises(InvalidInputError):
        restore(store.engine, store.folder, tmp_path / "bad.tar")
    assert not (tmp_path / "escaped").exists() and not (tmp_path / "store" / "escaped").exists()


@pytest.mark.parametrize("part", ["identifier", "file"])
def test_a_job_with_files_outside_the_store_is_refused(tmp_path: Path, part: str) -> None:
    """The job would read any file of the machine, and at its end delete the folder that its identifier names."""
    with closing(CaseStore(tmp_path / "one")) as store:
        job = add_job(JobStore(store.engine, store.folder, server="one"), tmp_path)
        backup(store.engine, store.folder, tmp_path / "good.tar")
    with tarfile.open(tmp_path / "good.tar") as archive:
        rows = archive.extractfile(ROWS)
        assert rows is not None
        old = job.id if part == "identifier" else job.files[0]
        changed = rows.read().replace(old.encode(), b"../../outside")
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        member = tarfile.TarInfo(ROWS)
        member.size = len(changed)
        archive.addfile(member, io.BytesIO(changed))
    with closing(CaseStore(tmp_path / "two")) as store:
        with pytest.raises(InvalidInputError, match=r"contains 'jobs/.*\.\./\.\./outside.*', which does not belong"):
            restore(store.engine, store.folder, tmp_path / "bad.tar")
        assert JobStore(store.engine, store.folder, server="two").claim("echo", 60, 3) is None


@pytest.mark.parametrize("content", [b"", b"no tar", None])
def test_a_file_that_is_not_a_backup_is_refused(tmp_path: Path, content: bytes | None) -> None:
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
