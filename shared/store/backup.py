"""A store as one file, whichever database it has, and back: into an empty store, on SQLite or PostgreSQL."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Engine, func, insert, select
from sqlalchemy.orm import Session

from shared.errors import InvalidInputError
from shared.store.tables import CaseRow, JobRow, PromotionRow, RetiredRow

ROWS, FORMAT = "rows.jsonl", "trivium-store-1"
_MEMBER = re.compile(r"(cases|jobs)/[0-9a-f]{32}(/[^/]+)+\Z")
_TABLES = {"cases": CaseRow, "jobs": JobRow, "promotions": PromotionRow, "retired_versions": RetiredRow}
_FOLDERS = ("cases", "jobs")


def backup(engine: Engine, folder: Path, target: Path) -> int:
    """Writes all cases and jobs with their files to ``target``, whole or not at all; returns how many cases.

    The server may go on meanwhile: a case that is deleted while it is written is left out.
    """
    if target.exists():
        raise InvalidInputError(f"{target} exists; name a new file")
    aside = target.with_name(f".partial-{target.name}")
    lines = [json.dumps({"format": FORMAT, "created_s": round(time.time())})]
    try:
        with open(aside, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            with tarfile.open(fileobj=file, mode="w") as archive:
                for table, row in _rows(engine):
                    home = folder / table / str(row["id"])
                    try:
                        if home.is_dir():
                            archive.add(home, f"{table}/{row['id']}")
                    except FileNotFoundError:
                        continue
                    lines.append(json.dumps({"table": table, "row": row}))
                text = "\n".join(lines).encode()
                member = tarfile.TarInfo(ROWS)
                member.size, member.mode = len(text), 0o600
                archive.addfile(member, io.BytesIO(text))
            os.fsync(file.fileno())
        aside.rename(target)
    finally:
        aside.unlink(missing_ok=True)
    return sum('"table": "cases"' in line[:20] for line in lines)


def restore(engine: Engine, folder: Path, source: Path) -> int:
    """Brings what ``backup`` wrote into an empty store; returns how many cases. Refuses a store that is not empty."""
    with Session(engine) as session:
        if any(session.scalar(select(func.count()).select_from(row)) for row in _TABLES.values()):
            raise InvalidInputError(
                f"the store {folder} holds cases or jobs; restore into an empty one (TRIVIUM_STORE)"
            )
    try:
        with tarfile.open(source) as archive:
            rows = None
            for member in archive:
                if member.name == ROWS and (found := archive.extractfile(member)) is not None:
                    rows = [json.loads(line) for line in found.read().decode().splitlines()]
                elif member.isfile() and _MEMBER.match(member.name):
                    archive.extract(member, folder, filter="data")
                elif not member.isdir():
                    raise InvalidInputError(f"{source} holds {member.name!r}, which is no file of a store")
    except (tarfile.TarError, OSError, ValueError) as error:
        raise InvalidInputError(f"{source} cannot be read as a backup: {error}") from error
    if not rows or rows[0].get("format") != FORMAT:
        raise InvalidInputError(f"{source} is no backup of a store, or is cut off; `trivium backup FILE` makes one")
    for table in _FOLDERS:
        (folder / table).mkdir(mode=0o700, exist_ok=True)
        for path in (folder / table).rglob("*"):
            path.chmod(0o700 if path.is_dir() else 0o600)
    with engine.begin() as connection:
        for entry in rows[1:]:
            connection.execute(insert(_TABLES[entry["table"]]).values(**entry["row"]))
    return sum(entry["table"] == "cases" for entry in rows[1:])


def _rows(engine: Engine) -> Iterator[tuple[str, dict[str, object]]]:
    for table, row in _TABLES.items():
        with Session(engine) as session:
            columns = list(row.__table__.columns)
            found = [dict(zip([c.key for c in columns], one, strict=True)) for one in session.execute(select(*columns))]
        yield from ((table, one) for one in found)
