"""Cases in the store."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from shared.errors import InvalidInputError
from shared.store.cases import CaseStore
from shared.store.database import empty_journal
from shared.store.inputs import describe_inputs
from shared.store.records import Case, InputFile, Outputs
from shared.store.tables import Base

A = InputFile(name="a.csv", bytes=1, sha256="a" * 64)
B = InputFile(name="b.csv", bytes=1, sha256="b" * 64)


def keep(
    store: CaseStore,
    app: str = "echo",
    inputs: tuple[InputFile, ...] = (A,),
    group: str | None = None,
    **outputs: object,
) -> Case:
    fields = {"result": {"found": [1]}, "picture": b"png", "files": {"out.csv": b"1"}} | outputs
    return store.add(
        app=app,
        interface="json",
        inputs=inputs,
        options={"k": "v"},
        artifact=("net", 3),
        group=group,
        outputs=Outputs(**fields | {"result": json.dumps(fields["result"]).encode()}),  # type: ignore[arg-type]
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CaseStore]:
    with closing(CaseStore(tmp_path / "store")) as found:
        yield found


def test_a_case_outlives_the_server(store: CaseStore, tmp_path: Path) -> None:
    case = keep(store)
    store.close()
    with closing(CaseStore(tmp_path / "store")) as reopened:
        assert reopened.get("echo", case.id) == case
        found = reopened.file(case, "out.csv")
    assert found is not None and found.read_bytes() == b"1"
    assert (tmp_path / "store" / "cases" / case.id / "result.json").read_text() == '{"found": [1]}'


def test_cases_belong_to_their_application_and_come_newest_first(store: CaseStore) -> None:
    first, second, other = keep(store), keep(store), keep(store, app="other")
    assert [case.id for case in store.recent("echo")] == [second.id, first.id]
    assert [case.id for case in store.recent("echo", limit=1)] == [second.id]
    assert store.get("echo", other.id) is None and store.get("echo", "none") is None
    assert second.created_ns >= first.created_ns and second.created.endswith("Z")


def test_only_files_of_the_case_are_found(store: CaseStore) -> None:
    case = keep(store)
    assert store.file(case, "picture.png") is not None
    for name in ("../../trivium.sqlite", "/etc/passwd", "none", "", "."):
        assert store.file(case, name) is None


@pytest.mark.parametrize("name", ["../out.csv", "a/b", "", "..", "result.json", "picture.png"])
def test_names_with_folders_and_reserved_names_are_refused(store: CaseStore, name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a case file"):
        keep(store, files={name: b""})
    assert not list((tmp_path / "store" / "cases").iterdir()) and not store.recent("echo")


def test_cases_that_a_killed_server_left_unfinished_are_removed(tmp_path: Path) -> None:
    half = tmp_path / "store" / "cases" / ".partial-1"
    half.mkdir(parents=True)
    (half / "result.json").write_text("{")
    CaseStore(tmp_path / "store").close()
    assert not half.exists()


def test_a_row_that_cannot_be_written_leaves_no_folder_behind(store: CaseStore, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "store" / "trivium.sqlite") as connection:
        connection.execute("DROP TABLE cases")
    connection.close()
    with pytest.raises(Exception, match="no such table"):
        keep(store)
    assert not list((tmp_path / "store" / "cases").iterdir())


def test_a_list_of_cases_reads_no_results(store: CaseStore) -> None:
    case = keep(store, inputs=(A, B))
    with sqlite3.connect(store.folder / "trivium.sqlite") as connection:
        connection.execute("UPDATE cases SET options = 'not JSON'")
    connection.close()
    (entry,) = store.recent("echo")
    assert (entry.id, entry.app, entry.interface, entry.inputs, entry.created) == (
        case.id,
        "echo",
        "json",
        (A, B),
        case.created,
    )
    assert entry.label == "a.csv and 1 more"
    images = tuple(A.model_copy(update={"name": "dcm file", "sha256": f"{n:064x}"}) for n in range(111))
    listed = entry.model_copy(update={"inputs": (*images, B)})
    assert listed.names == ["111 dcm files", B.name] and listed.label == "111 dcm files and 1 more"
    assert entry.model_copy(update={"inputs": images}).label == "111 dcm files"
    assert entry.model_copy(update={"inputs": (A, A)}).names == ["a.csv", "a.csv"]
    assert entry.model_copy(update={"inputs": images[:1]}).label == "dcm file"


def test_a_store_is_open_once_at_a_time(store: CaseStore, tmp_path: Path) -> None:
    half = tmp_path / "store" / "cases" / ".partial-1"
    half.mkdir()
    with pytest.raises(InvalidInputError, match="in use by another server; give this one its own folder"):
        CaseStore(tmp_path / "store")
    assert half.exists(), "it may be what the other server is writing"
    with closing(CaseStore(tmp_path / "other")):
        store.close()
    CaseStore(tmp_path / "store").close()
    assert not half.exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match=r"cannot be written .*; set TRIVIUM_STORE to another folder"):
        CaseStore(tmp_path / "file")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://me:secret@localhost/trivium", r"the package pg8000; install trivium\[postgres\]"),
        ("nonsense", "TRIVIUM_STORE_URL is not the URL"),
        ("abacus://here", "TRIVIUM_STORE_URL is not the URL"),
        (
            "sqlite:////nowhere/at/all.sqlite",
            "sqlite:////nowhere/at/all.sqlite cannot be used: unable to open database file; check its permissions and "
            "the free space on its disk, or set TRIVIUM_STORE_URL to another database",
        ),
    ],
)
def test_an_unusable_database_url_is_refused(
    tmp_path: Path, url: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pg8000", None)
    with pytest.raises(InvalidInputError, match=words) as raised:
        CaseStore(tmp_path / "store", url)
    assert "secret" not in str(raised.value)
    CaseStore(tmp_path / "store").close()


def test_the_digest_of_all_inputs_does_not_depend_on_their_order(store: CaseStore) -> None:
    in_order, reversed_order = keep(store, inputs=(A, B)), keep(store, inputs=(B, A))
    assert in_order.inputs_sha256 == reversed_order.inputs_sha256 != keep(store).inputs_sha256


def test_inputs_in_a_folder_are_named_by_their_path_from_it(tmp_path: Path) -> None:
    folder = tmp_path / "series"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "1.dcm").write_bytes(b"abc")
    assert describe_inputs([folder]) == (
        InputFile(
            name="series/sub/1.dcm", bytes=3, sha256="ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        ),
    )


def test_many_write_at_once_while_others_read(store: CaseStore, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        cases = list(pool.map(lambda n: (keep(store), store.recent("echo"))[0], range(40)))
    assert len({case.id for case in cases}) == 40 == len(store.recent("echo", limit=100))
    with sqlite3.connect(tmp_path / "store" / "trivium.sqlite") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_the_journal_is_emptied_only_while_nobody_reads_or_writes(store: CaseStore, tmp_path: Path) -> None:
    database = tmp_path / "store" / "trivium.sqlite"
    journal = database.with_name("trivium.sqlite-wal")
    for transaction in ("BEGIN IMMEDIATE", "BEGIN; SELECT count(*) FROM cases"):
        keep(store)
        with closing(sqlite3.connect(database)) as writer:
            writer.executescript(transaction)
            began = time.monotonic()
            empty_journal(store.engine)
            assert time.monotonic() - began < 8 and journal.stat().st_size > 0  # it does not wait
    empty_journal(store.engine)
    assert journal.stat().st_size == 0 and len(store.recent("echo")) == 2
    with store.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 10000


def test_files_of_the_store_are_private_to_its_account(store: CaseStore, tmp_path: Path) -> None:
    earlier = os.umask(0)
    try:
        keep(store, files={"report.txt": b"x"})
    finally:
        os.umask(earlier)
    paths = [tmp_path / "store", *(tmp_path / "store").rglob("*")]
    assert {path.name for path in paths} >= {"store", "cases", "trivium.sqlite", "result.json", "report.txt"}
    lock = tmp_path / "store" / "server.lock"
    assert {path.name: oct(path.stat().st_mode & 0o077) for path in paths if path != lock} == {
        path.name: "0o0" for path in paths if path != lock
    }


def test_a_store_readable_by_all_becomes_private(store: CaseStore, tmp_path: Path) -> None:
    case = keep(store)
    store.close()
    cases, database = tmp_path / "store" / "cases", tmp_path / "store" / "trivium.sqlite"
    cases.chmod(0o755)
    database.chmod(0o644)
    with closing(CaseStore(tmp_path / "store")) as reopened:
        assert reopened.get("echo", case.id) == case
    assert (cases.stat().st_mode & 0o777, database.stat().st_mode & 0o777) == (0o700, 0o600)


_FIRST_RELEASE = """
CREATE TABLE cases (
    id VARCHAR(32) NOT NULL, app VARCHAR(64) NOT NULL, created_ns BIGINT NOT NULL, door VARCHAR(32) NOT NULL,
    inputs JSON NOT NULL, inputs_sha256 VARCHAR(64) NOT NULL, options JSON NOT NULL,
    artifact_name VARCHAR(128) NOT NULL, artifact_version INTEGER NOT NULL, result JSON NOT NULL, files JSON NOT NULL,
    PRIMARY KEY (id)
);
CREATE INDEX cases_by_app_and_time ON cases (app, created_ns);
INSERT INTO cases VALUES ('c1', 'echo', 1700000000000000000, 'form', '[{"name": "a.csv", "bytes": 1, "sha256": "aa"}]',
    'bb', '{"unit": "mm"}', 'echo', 2, '{"found": [1]}', '["report.txt"]');
"""
"""The table of the first release, with a case in it."""


def test_a_new_store_and_one_migrated_from_the_first_release_have_the_tables_in_the_code(
    tmp_path: Path,
) -> None:
    for folder in ("new", "old"):
        (tmp_path / folder).mkdir()
    with closing(sqlite3.connect(tmp_path / "old" / "trivium.sqlite")) as connection:
        connection.executescript(_FIRST_RELEASE)
    for folder in ("new", "old"):
        with closing(CaseStore(tmp_path / folder)) as store, store.engine.connect() as connection:
            assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_a_store_of_a_newer_version_is_refused(store: CaseStore, tmp_path: Path) -> None:
    store.close()
    with closing(sqlite3.connect(tmp_path / "store" / "trivium.sqlite")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    with pytest.raises(InvalidInputError, match=r"newer version of Trivium \(tables 9999\); use that version"):
        CaseStore(tmp_path / "store")


def test_the_refusal_of_a_store_names_the_setting_to_change(tmp_path: Path) -> None:
    database = tmp_path / "elsewhere.sqlite"
    for folder in (tmp_path / "beside", tmp_path / "given"):
        (folder / "cases").mkdir(parents=True)
    for file in (database, tmp_path / "given" / "trivium.sqlite"):
        with closing(sqlite3.connect(file)) as connection:
            connection.executescript(_FIRST_RELEASE + "ALTER TABLE cases DROP COLUMN door")
    with pytest.raises(InvalidInputError, match="door; set TRIVIUM_STORE_URL to another database, or use that"):
        CaseStore(tmp_path / "beside", f"sqlite:///{database}")
    with pytest.raises(InvalidInputError, match="door; set --store to another folder, or use that"):
        CaseStore(tmp_path / "given", setting="--store")
    for file in (database, tmp_path / "given" / "trivium.sqlite"):
        with closing(sqlite3.connect(file)) as connection:
            connection.executescript("DROP TABLE cases; CREATE TABLE alembic_version (version_num TEXT);")
            connection.execute("INSERT INTO alembic_version VALUES ('9999')")
            connection.commit()
    with pytest.raises(InvalidInputError, match="use that version, or set TRIVIUM_STORE_URL to another database"):
        CaseStore(tmp_path / "beside", f"sqlite:///{database}")
    with pytest.raises(InvalidInputError, match="use that version, or set --store to another folder"):
        CaseStore(tmp_path / "given", setting="--store")


def test_a_store_of_the_first_release_opens(tmp_path: Path) -> None:
    (tmp_path / "cases").mkdir()
    with closing(sqlite3.connect(tmp_path / "trivium.sqlite")) as connection:
        connection.executescript(_FIRST_RELEASE)
    with closing(CaseStore(tmp_path)) as store:
        case = store.get("echo", "c1")
        assert case is not None and case.created == "2023-11-14T22:13:20.000Z" and case.label == "a.csv"
        assert (case.options, case.artifact_version, case.interface) == ({"unit": "mm"}, 2, "form")
        assert case.inputs == (InputFile(name="a.csv", bytes=1, sha256="aa"),) and case.files == ("report.txt",)
        newer = keep(store)
        assert [entry.id for entry in store.recent("echo")] == [newer.id, "c1"]


@pytest.mark.parametrize(
    ("change", "column"),
    [
        ("ALTER TABLE cases DROP COLUMN door", "door"),
        ("ALTER TABLE cases RENAME COLUMN files TO outputs", "files, outputs"),
    ],
)
def test_a_store_of_another_version_is_refused(tmp_path: Path, change: str, column: str) -> None:
    (tmp_path / "cases").mkdir()
    with closing(sqlite3.connect(tmp_path / "trivium.sqlite")) as connection:
        connection.executescript(_FIRST_RELEASE + change)
    with pytest.raises(
        InvalidInputError, match=f"another version of Trivium: its table cases differs in {column}; set"
    ):
        CaseStore(tmp_path)
    with pytest.raises(InvalidInputError, match="another version"):
        CaseStore(tmp_path)  # the lock on the folder was released


def test_an_additional_nullable_column_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "cases").mkdir()
    with closing(sqlite3.connect(tmp_path / "trivium.sqlite")) as connection:
        connection.executescript(_FIRST_RELEASE + "ALTER TABLE cases ADD COLUMN reviewer VARCHAR(64)")
    with closing(CaseStore(tmp_path)) as store:
        keep(store)


def test_nothing_of_a_removed_case_is_left_in_the_folder(store: CaseStore, tmp_path: Path) -> None:
    kept, removed = keep(store, result={"note": "stays"}), keep(store, result={"note": "vanishes " * 2000})
    store.remove(removed)
    store.remove(removed)
    store.close()
    everything = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
    assert b"stays" in everything and b"vanishes" not in everything
    assert {path.name for path in (tmp_path / "store" / "cases").iterdir()} == {kept.id}


def test_the_oldest_cases_are_deleted_above_the_limit_on_bytes(store: CaseStore) -> None:
    cases = [keep(store, picture=bytes(1000)) for _ in range(4)]
    assert store.used_bytes("echo") == sum(case.bytes for case in cases) > 4000
    keep(store, app="other", picture=bytes(9000))
    assert store.expire("echo", max_bytes=2 * cases[0].bytes) == 2
    assert [case.id for case in store.recent("echo")] == [cases[3].id, cases[2].id]
    assert store.used_bytes("other") > 9000


def test_a_file_much_larger_than_its_own_sources_is_not_kept(store: CaseStore) -> None:
    later = {"large.bin": ("seed",), "small.bin": ("own",), "first.bin": ("both",), "second.bin": ("both",)}
    sources = {"seed": b"seed", "own": b"own", "both": b"both"}
    case = keep(store, later=later, sources=sources)
    used_bytes = store.used_bytes("echo")
    large = bytes(1_100_000)
    for name in ("large.bin", "small.bin", "first.bin"):
        store.keep(case, name, b"made" if name == "small.bin" else large)
    assert store.file(case, "large.bin") is None and store.sources(case, "large.bin") is not None, (
        "made again each time"
    )
    assert store.file(case, "small.bin") is not None and store.file(case, "first.bin") is not None
    assert store.sources(case, "second.bin") is not None, "another file needs the same source"
    assert used_bytes < store.used_bytes("echo") < 2 * len(large)


def test_a_lasting_source_is_kept_until_its_case_is_deleted(store: CaseStore) -> None:
    later, sources = {"made.bin": ("lasting", "passing")}, {"lasting": b"stays", "passing": b"goes"}
    case = keep(store, later=later, sources=sources, lasting=("lasting",))
    assert set(case.files) == {"out.csv", "made.bin"}, "a source is not a file of the case"
    found = store.sources(case, "made.bin")
    assert found is not None and {Path(str(path)).read_bytes() for path in found.values()} == {b"stays", b"goes"}
    store.keep(case, "made.bin", b"made")
    lasting = store.lasting(case, "lasting")
    assert lasting is not None and lasting.read_bytes() == b"stays"
    assert store.lasting(case, "passing") is None and store.sources(case, "made.bin") is None
    store.remove(case)
    assert store.lasting(case, "lasting") is None


def test_a_lasting_source_is_kept_without_a_file_that_needs_it(store: CaseStore) -> None:
    case = keep(store, sources={"lasting": b"stays", "unused": b"goes"}, lasting=("lasting",))
    lasting = store.lasting(case, "lasting")
    assert lasting is not None and lasting.read_bytes() == b"stays" and store.lasting(case, "unused") is None


def test_a_case_that_alone_is_too_large_does_not_displace_others(store: CaseStore) -> None:
    small = keep(store, picture=bytes(1000))
    large = keep(store, picture=bytes(5000))
    newest = keep(store, picture=bytes(1000))
    assert store.expire("echo", max_bytes=3 * small.bytes) == 1
    assert [case.id for case in store.recent("echo")] == [newest.id, small.id] and store.get("echo", large.id) is None
