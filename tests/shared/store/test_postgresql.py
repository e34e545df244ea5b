"""The store on a PostgreSQL server."""

from __future__ import annotations

import json
import socket
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from shared import cli
from shared.errors import InvalidInputError
from shared.review import Review
from shared.store.backup import backup, restore
from shared.store.cases import CaseStore
from shared.store.jobs import JobStore, NewJob
from shared.store.records import Case, InputFile, Origin, Outputs
from tests.shared.postgresql import PostgreSQL


@pytest.fixture(scope="module")
def server(postgresql: PostgreSQL) -> str:
    """The address of a database that the tests share."""
    return postgresql.database()


def keep(store: CaseStore, app: str = "echo", group: str | None = None, **outputs: object) -> Case:
    given = {
        "result": {"found": [1, 2.5, None], "name": "沪深 300"},
        "picture": b"png",
        "files": {"out.csv": b"1"},
    } | outputs
    return store.add(
        app=app,
        interface="json",
        inputs=(InputFile(name="a.csv", bytes=1, sha256="a" * 64),),
        options={"k": "v"},
        artifact=("net", 3),
        outputs=Outputs(**given | {"result": json.dumps(given["result"]).encode()}),  # type: ignore[arg-type]
        group=group,
    )


def test_cases_are_kept_listed_and_found_again(server: str, tmp_path: Path) -> None:
    with closing(CaseStore(tmp_path / "store", server)) as store:
        first, second, other = keep(store), keep(store), keep(store, app="other")
        assert [case.id for case in store.recent("echo")] == [second.id, first.id]
        assert store.get("echo", other.id) is None
    with closing(CaseStore(tmp_path / "store", server)) as again:
        assert again.get("echo", first.id) == first
        found = again.file(first, "out.csv")
    assert found is not None and found.read_bytes() == b"1"
    assert not (tmp_path / "store" / "trivium.sqlite").exists()


def test_each_group_has_its_own_number_of_cases_and_bytes(server: str, tmp_path: Path) -> None:
    with closing(CaseStore(tmp_path / "store", server)) as store:
        cases = {group: [keep(store, app="bounded", group=group) for _ in range(4)] for group in (None, "desk", "hall")}
        assert store.expire("bounded", number=3) == 3
        assert store.expire("bounded", max_bytes=2 * cases[None][0].bytes) == 3
        large = keep(store, app="bounded", group="desk", picture=b"p" * 10_000)
        assert store.expire("bounded", max_bytes=2 * cases[None][0].bytes) == 1
        assert store.get("bounded", large.id) is None
        for group, kept in cases.items():
            found = {case.id for case in kept if store.get("bounded", case.id)}
            assert found == {case.id for case in kept[2:]}, group


def test_reviews_are_kept_replaced_and_deleted_with_their_case(server: str, tmp_path: Path) -> None:
    with closing(CaseStore(tmp_path, server)) as store:
        case = keep(store, app="reviewed")
        first = Review(reviewer="Ada", reviewed_ns=7, verdicts={1: "accepted"}, note="\u00e9")
        for review in (first, replace(first, reviewer=None, reviewed_ns=8), replace(first, reviewed_ns=9)):
            store.reviews.put(case.id, review)
        assert [one.reviewed_ns for one in store.reviews.of_case(case.id)] == [9, 8]
        newer, read = replace(first, reviewed_ns=10_000_000), first.reviewed
        store.reviews.put_if_unchanged(case.id, newer, read)
        for review in (first, replace(first, reviewer="Grace")):
            with pytest.raises(InvalidInputError, match="meanwhile"):
                store.reviews.put_if_unchanged(case.id, review, read)
        store.reviews.put_if_unchanged(case.id, replace(first, reviewer="Grace"), None)
        store.remove(case)
        assert store.reviews.of_app("reviewed") == {} == store.reviews.lines([case.id])
        with pytest.raises(InvalidInputError, match="is gone from the store"):
            store.reviews.put(case.id, first)


def test_the_refusal_of_a_wrong_password_does_not_show_it(server: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be used") as refused:
        CaseStore(tmp_path / "store", server.replace("a%20secret", "wrongly"))
    assert "wrongly" not in str(refused.value)


def test_an_unreachable_server_is_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(InvalidInputError, match="cannot be used"):
            CaseStore(tmp_path / "store", f"postgresql://trivium@127.0.0.1:{taken.getsockname()[1]}/trivium")


def test_two_servers_share_a_folder_and_a_database(server: str, tmp_path: Path) -> None:
    with closing(CaseStore(tmp_path / "store", server)) as one, closing(CaseStore(tmp_path / "store", server)) as two:
        case = keep(one, app="shared")
        assert two.get("shared", case.id) == case
        two.remove(case)
        assert one.get("shared", case.id) is None


def test_two_servers_add_a_job_and_notify_its_end_only_once(postgresql: PostgreSQL, tmp_path: Path) -> None:
    with closing(CaseStore(tmp_path / "store", postgresql.database())) as store:
        one, two = (JobStore(store.engine, store.folder, name, has_webhook=True) for name in ("one", "two"))
        jobs = []
        for jobs_of_server in (one, two):  # the folder of a sample is empty, so the second rename replaces it
            (tmp_path / "upload").mkdir()
            job = NewJob(app="echo", origin=Origin("json"), files=[], options={}, sample="three")
            jobs.append(jobs_of_server.add(job, tmp_path / "upload", "5" * 32))
        assert jobs[0].id == jobs[1].id == "5" * 32 and two.folder(jobs[0]).is_dir()
        assert one.claim("echo", 60, 3) == one.get("echo", "5" * 32) and two.claim("echo", 60, 3) is None
        assert one.mark_done(jobs[0], "c" * 32)
        told, last = two.claim_notification(60, 3600)
        assert (told.id, told.state, last) == ("5" * 32, "done", False) and one.claim_notification(60, 3600) is None


def test_a_backup_goes_from_sqlite_to_postgresql(server: str, tmp_path: Path) -> None:
    with closing(CaseStore(tmp_path / "small")) as small:
        case = keep(small, app="moved", inputs={"given": b"whole"})
        backup(small.engine, small.folder, tmp_path / "all.tar")
    with closing(CaseStore(tmp_path / "large", server)) as large:
        for app in large.apps():
            large.expire(app, number=0)
        assert restore(large.engine, large.folder, tmp_path / "all.tar") == 1
        assert large.get("moved", case.id) == case and large.file(case, "out.csv") is not None
        given = large.kept_input(case, "given")
        assert given is not None and given.read_bytes() == b"whole"


def test_keys_are_said_to_be_in_the_database_whose_password_is_not_shown(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIVIUM_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("TRIVIUM_STORE_URL", server)
    assert cli.main(["keys", "add", "anna"]) == 0
    added = capsys.readouterr().err
    assert cli.main(["keys", "list"]) == 0
    listed = "".join(capsys.readouterr().out.split())  # the title is broken into lines
    for told in (added, listed):
        assert server.rpartition("@")[2] in told and "secret" not in told and str(tmp_path) not in told
    assert "store is new" not in added, "other servers may already use the database"
