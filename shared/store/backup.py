"""Backs up a store to one file, and restores it into an empty store; both work on SQLite and PostgreSQL."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tarfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, func, insert, select
from sqlalchemy.orm import Session

from shared.errors import InvalidInputError
from shared.store.cases import RESULT
from shared.store.jobs import FINAL
from shared.store.tables import Base, CaseRow, JobRow, PromotionRow, RetiredRow, ReviewRow

ROWS, FORMAT = "rows.jsonl", "trivium-store-1"
_MEMBER = re.compile(r"(cases|jobs)/[0-9a-f]{32}(/(?!\.\.?(/|\Z))[^/]+)+\Z")
# Jobs are written before cases, so that the case of a job that is done is in the backup too. Reviews are written after
# cases, because they refer to them.
_TABLES = {
    "jobs": JobRow,
    "cases": CaseRow,
    "reviews": ReviewRow,
    "promotions": PromotionRow,
    "retired_versions": RetiredRow,
}
_FOLDERS = ("cases", "jobs")


def backup(engine: Engine, folder: Path, target: Path) -> int:
    """Writes the whole store to ``target``, except its keys; returns the number of cases.

    These are cases and jobs with their files, reviews, and promoted and retired versions. ``target`` appears only when
    it is complete. The server may keep running: a case that is deleted while the backup is written is skipped, and a
    job that ends meanwhile is written as ended, with its case. Raises ``InvalidInputError`` if ``target`` exists or
    cannot be written.
    """
    if target.exists():
        raise InvalidInputError(f"{target} already exists; name a new file")
    temporary = target.with_name(f".partial-{target.name}")
    try:
        with open(temporary, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            with tarfile.open(fileobj=file, mode="w") as archive:
                cases = _write(engine, folder, archive)
            os.fsync(file.fileno())
        temporary.rename(target)
    except OSError as error:
        raise InvalidInputError(f"the backup {target} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return cases


def _write(engine: Engine, folder: Path, archive: tarfile.TarFile) -> int:
    """Writes the files and then the rows; returns the number of cases."""
    lines = [json.dumps({"format": FORMAT, "created_s": round(time.time())})]
    cases: set[str] = set()
    for table, row in _read_rows(engine):
        if table == "reviews" and row["case_id"] not in cases:
            continue
        if table == "cases" and not _add_folder(archive, folder / table / str(row["id"]), f"{table}/{row['id']}"):
            continue
        if table == "jobs" and row["state"] not in FINAL:
            _add_folder(archive, folder / table / str(row["id"]), f"{table}/{row['id']}")
            current = _read_row(engine, JobRow, str(row["id"]))
            if current is None:
                continue
            row = current
        lines.append(json.dumps({"table": table, "row": row}))
        if table == "cases":
            cases.add(str(row["id"]))
    text = "\n".join(lines).encode()
    member = tarfile.TarInfo(ROWS)
    member.size, member.mode = len(text), 0o600
    archive.addfile(member, io.BytesIO(text))
    return len(cases)


def _add_folder(archive: tarfile.TarFile, folder: Path, name: str) -> bool:
    """Adds a folder to the archive; returns False if it no longer exists.

    It retries if a file disappears meanwhile, as sources do once the files generated from them are there.
    """
    while folder.is_dir():
        try:
            archive.add(folder, name)
            return True
        except FileNotFoundError:
            continue
    return False


def restore(engine: Engine, folder: Path, source: Path) -> int:
    """Restores a backup into an empty store; returns the number of cases.

    Raises ``InvalidInputError`` if the store is not empty or ``source`` is not a complete backup.
    """
    with Session(engine) as session:
        if any(session.scalar(select(func.count()).select_from(row)) for row in _TABLES.values()):
            raise InvalidInputError(f"the store {folder} has cases or jobs; restore into an empty one (TRIVIUM_STORE)")
    try:
        with tarfile.open(source) as archive:
            rows = None
            for member in archive:
                if member.name == ROWS and (content := archive.extractfile(member)) is not None:
                    rows = [json.loads(line) for line in content.read().decode().splitlines()]
                elif member.isfile() and _MEMBER.match(member.name):
                    archive.extract(member, folder, filter="data")
                elif not member.isdir():
                    raise InvalidInputError(f"{source} contains {member.name!r}, which does not belong to a store")
    except (tarfile.TarError, OSError, ValueError) as error:
        raise InvalidInputError(f"{source} cannot be read as a backup: {error}") from error
    if not rows or rows[0].get("format") != FORMAT:
        raise InvalidInputError(f"{source} is not a backup, or is truncated; `trivium backup FILE` writes one")
    for name in _named_files(rows[1:]):
        if not _MEMBER.match(name):
            raise InvalidInputError(f"{source} contains {name!r}, which does not belong to a store")
    _remove_orphaned_files(folder, rows[1:])
    for table in _FOLDERS:
        (folder / table).mkdir(mode=0o700, exist_ok=True)
        for path in (folder / table).rglob("*"):
            path.chmod(0o700 if path.is_dir() else 0o600)
    with engine.begin() as connection:
        for entry in rows[1:]:
            connection.execute(insert(_TABLES[entry["table"]]).values(**entry["row"]))
    return sum(entry["table"] == "cases" for entry in rows[1:])


def _named_files(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The files that rows name: a job reads its files, and deletes its folder, by these names."""
    for entry in rows:
        if (table := entry["table"]) in _FOLDERS:
            yield from (f"{table}/{entry['row']['id']}/{name}" for name in (RESULT, *entry["row"]["files"]))


def _remove_orphaned_files(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Removes the files of cases that were deleted, and of jobs that ended, while the backup was written."""
    with_files = {
        (entry["table"], entry["row"]["id"])
        for entry in rows
        if entry["table"] == "cases" or (entry["table"] == "jobs" and entry["row"]["state"] not in FINAL)
    }
    for table in _FOLDERS:
        for entry_folder in (folder / table).glob("*"):
            if (table, entry_folder.name) not in with_files:
                shutil.rmtree(entry_folder)


def _read_rows(engine: Engine) -> Iterator[tuple[str, dict[str, Any]]]:
    for table, row in _TABLES.items():
        with Session(engine) as session:
            rows = [_as_dict(row, values) for values in session.execute(select(*row.__table__.columns))]
        yield from ((table, values) for values in rows)


def _read_row(engine: Engine, row: type[Base], number: str) -> dict[str, Any] | None:
    columns = row.__table__.columns
    with Session(engine) as session:
        values = session.execute(select(*columns).where(columns["id"] == number)).first()
    return None if values is None else _as_dict(row, values)


def _as_dict(row: type[Base], values: Iterable[Any]) -> dict[str, Any]:
    return dict(zip((column.key for column in row.__table__.columns), values, strict=True))
