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
    fields = {
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
        outputs=Outputs(**fields | {"result": json.dumps(fields["result"]).encode()}),  # type: ignore[arg-type]
        group=group,
    )


def test_cases_are_kept_listed_and_found_again(server: str, tmp_path: Path) -> None:
    with closing(CaseStore(tmp_path / "store", server)) as store:
        first, second, other = keep(store), keep(store), keep(store, app="other")
        assert [case.id for case in store.recent("echo")] == [second.id, first.id]
        assert store.get("echo", other.id) is None
    with closing(CaseStore(tmp_path / "store", server)) as reopened:
        assert reopened.get("echo", first.id) == first
        found = reopened.file(first, "out.csv")
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
        for group, group_case in cases.items():
            found = {case.id for case in group_case if store.get("bounded", case.id)}
            assert found == {case.id for case in group_case[2:]}, group


def test_reviews_are_kept_replaced_and_deleted_with_their_case(server: str, tmp_path: Path) -> None:
    with closing(CaseStore(tmp_path, server)) as store:
        case = keep(store, app="reviewed")
        first = Review(reviewer="Ada", reviewed_ns=7, verdicts={1: "accepted"}, note="\u00e9")
        for review in (first, replace(first, reviewer=None, reviewed_ns=8), replace(first, reviewed_ns=9)):
            store.reviews.put(case.id, review)
        assert [review.reviewed_ns for review in store.reviews.of_case(case.id)] == [9, 8]
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
    with pytest.raises(InvalidInputError, match="cannot be used") as raised:
        CaseStore(tmp_path / "store", server.replace("a%20secret", "wrongly"))
    assert "wrongly" not in str(raised.value)


def test_an_unreachable_server_is_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(InvalidInputError, match="cannot be used"):
            CaseStore(tmp_path / "store", f"postgresql://trivium@127.0.0.1:{taken.getsockname()[1]}/trivium")


def test_two_servers_share_a_folder_and_a_database(server: str, tmp_path: Path) -> None:
    with (
        closing(CaseStore(tmp_path / "store", server)) as first_server,
        closing(CaseStore(tmp_path / "store", server)) as second_server,
    ):
        case = keep(first_server, app="shared")
        assert second_server.get("shared", case.id) == case
        second_server.remove(case)
        assert first_server.get("shared", case.id) is None


def test_two_servers_add_a_job_and_notify_its_end_only_once(postgresql: PostgreSQL, tmp_path: Path) -> None:
    with closing(CaseStore(tmp_path / "store", postgresql.database())) as store:
        first_server, second_server = (
            JobStore(store.engine, store.folder, name, has_webhook=True) for name in ("one", "two")
        )
        jobs = []
        for jobs_of_server in (
            first_server,
            second_server,
        ):  # the folder of a sample is empty, so the second rename replaces it
            (tmp_path / "upload").mkdir()
            job = NewJob(app="echo", origin=Origin("json"), files=[], options={}, sample="three")
            jobs.append(jobs_of_server.add(job, tmp_path / "upload", "5" * 32))
        assert jobs[0].id == jobs[1].id == "5" * 32 and second_server.folder(jobs[0]).is_dir()
        assert (
            first_server.claim("echo", 60, 3) == first_server.get("echo", "5" * 32)
            and second_server.claim("echo", 60, 3) is None
        )
        assert first_server.mark_done(jobs[0], "c" * 32)
        notification, last = second_server.claim_notification(60, 3600)
        assert (notification.id, notification.state, last) == (
            "5" * 32,
            "done",
            False,
        ) and first_server.claim_notification(60, 3600) is None


def test_a_backup_goes_from_sqlite_to_postgresql(server: str, tmp_path: Path) -> None:
    with closing(CaseStore(tmp_path / "small")) as small:
        case = keep(small, app="moved", inputs={"given": b"whole"})
        backup(small.engine, small.folder, tmp_path / "all.tar")
    with closing(CaseStore(tmp_path / "large", server)) as large:
        for app in large.apps():
            large.expire(app, number=0)
        assert restore(large.engine, large.folder, tmp_path / "all.tar") == 1
        assert large.get("moved", case.id) == case and large.file(case, "out.csv") is not None
        input_file = large.kept_input(case, "given")
        assert input_file is not None and input_file.read_bytes() == b"whole"


def test_keys_are_said_to_be_in_the_database_whose_password_is_not_shown(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIVIUM_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("TRIVIUM_STORE_URL", server)
    assert cli.main(["keys", "add", "anna"]) == 0
    added = capsys.readouterr().err
    assert cli.main(["keys", "list"]) == 0
    listed = "".join(capsys.readouterr().out.split())  # the title is broken into lines
    for output in (added, listed):
        assert server.rpartition("@")[2] in output and "secret" not in output and str(tmp_path) not in output
    assert "store is new" not in added, "other servers may already use the database"


def test_the_stage_of_a_job_can_name_the_network_that_is_loaded(server: str, tmp_path: Path) -> None:
    """PostgreSQL refuses texts that are longer than their column; SQLite does not."""
    stage = "loading the model: timing the programs of lung_nodule_candidates, once on this machine"
    with closing(CaseStore(tmp_path, server)) as store:
        jobs = JobStore(store.engine, store.folder, "one")
        (tmp_path / "upload").mkdir()
        job = jobs.add(
            NewJob(app="staged", origin=Origin("json"), files=[], options={}, sample="three"), tmp_path / "upload"
        )
        jobs.claim("staged", 60, 3)
        assert jobs.send_heartbeat(job, stage)
        assert [found.stage for found in (jobs.get("staged", job.id),) if found is not None] == [stage]
