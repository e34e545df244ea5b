"""Cases: what was asked, what came out, and the files of both, kept so that a person may look again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from shared.atomic_files import file_lock, publish
from shared.deploy.predictor import Response
from shared.errors import InvalidInputError
from shared.store.tables import CaseRow, connect, sqlite_url

RESULT, PICTURE, LOCK, DATABASE = "result.json", "picture.png", "server.lock", "trivium.sqlite"
_PARTIAL = ".partial-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """A file that was handed in: its name, size in bytes and SHA-256. The content is not kept.

    ``name`` is the kind of the file where names may be those of persons: "nii.gz file".
    """

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A kept case. ``created_ns`` is UTC in nanoseconds, ``inputs_sha256`` the digest of all inputs together.

    ``files`` are the names of the app's own files, besides ``result.json`` and ``picture.png``. ``door`` is the way
    that the request came: form, json, or the name of a protocol.
    """

    id: str
    app: str
    created_ns: int
    door: str
    inputs: tuple[Input, ...]
    inputs_sha256: str
    options: Mapping[str, str]
    artifact_name: str
    artifact_version: int
    result: dict[str, Any]
    files: tuple[str, ...]

    @property
    def created(self) -> str:
        """The time of the case in ISO 8601, UTC, to the millisecond."""
        return _iso(self.created_ns)


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseEntry:
    """A case in a list: what ``Case`` holds without the result, which may be large."""

    id: str
    app: str
    created_ns: int
    door: str
    inputs: tuple[Input, ...]

    @property
    def created(self) -> str:
        """The time of the case in ISO 8601, UTC, to the millisecond."""
        return _iso(self.created_ns)

    @property
    def label(self) -> str:
        """The names (or kinds) of the inputs, shortened for a list."""
        if not self.inputs:
            return self.id
        more = f" and {len(self.inputs) - 1} more" if len(self.inputs) > 1 else ""
        return self.inputs[0].name + more


class CaseStore:
    """Cases in a database (SQLite in ``folder`` unless ``url`` names another), their files under ``folder/cases``.

    A folder has one open store at a time, in whichever process; refuses a second one. What it makes is private to the
    account that it runs under: cases may be of patients.
    """

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self.folder = folder
        self._cases = folder / "cases"
        with ExitStack() as held:
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._cases.mkdir(mode=0o700, exist_ok=True)
                _make_private(self._cases, 0o700)
                held.enter_context(file_lock(folder / LOCK, wait=False))
            except BlockingIOError as error:
                raise InvalidInputError(
                    f"the store {folder} is in use by another server; give this one a folder of its own "
                    "(TRIVIUM_STORE), or end the other"
                ) from error
            except OSError as error:
                raise InvalidInputError(
                    f"the store {folder} cannot be written ({error.strerror}); name another folder in TRIVIUM_STORE"
                ) from error
            if url is None:
                # SQLite gives its journal the permissions of the database.
                (folder / DATABASE).touch(mode=0o600)
                _make_private(folder / DATABASE, 0o600)
            self._engine = connect(url or sqlite_url(folder / DATABASE))
            self._held = held.pop_all()
        # What a server that was killed had begun; with the lock held, nobody is writing it.
        for left in self._cases.glob(f"{_PARTIAL}*"):
            shutil.rmtree(left, ignore_errors=True)

    def add(
        self,
        *,
        app: str,
        door: str,
        inputs: Iterable[Input],
        options: Mapping[str, str],
        artifact: tuple[str, int],
        response: Response,
    ) -> Case:
        """Keeps a case. Its folder appears whole, before the row that makes it known."""
        given = tuple(inputs)
        case = Case(
            id=uuid.uuid4().hex,
            app=app,
            created_ns=time.time_ns(),
            door=door,
            inputs=given,
            inputs_sha256=_digest_of_all(given),
            options=dict(options),
            artifact_name=artifact[0],
            artifact_version=artifact[1],
            result=response.result,
            files=tuple(response.files),
        )
        self._write_files(case.id, response)
        row = CaseRow(
            id=case.id,
            app=case.app,
            created_ns=case.created_ns,
            door=case.door,
            inputs=[asdict(item) for item in case.inputs],
            inputs_sha256=case.inputs_sha256,
            options=dict(case.options),
            artifact_name=case.artifact_name,
            artifact_version=case.artifact_version,
            result=case.result,
            files=list(case.files),
        )
        try:
            with Session(self._engine) as session, session.begin():
                session.add(row)
        except BaseException:
            shutil.rmtree(self._cases / case.id, ignore_errors=True)
            raise
        return case

    def get(self, app: str, case_id: str) -> Case | None:
        """The case of an application, or None."""
        with Session(self._engine) as session:
            row = session.get(CaseRow, case_id)
            return _case(row) if row is not None and row.app == app else None

    def recent(self, app: str, limit: int = 20) -> list[CaseEntry]:
        """The newest cases of an application, the newest first."""
        columns = CaseRow.id, CaseRow.app, CaseRow.created_ns, CaseRow.door, CaseRow.inputs
        query = select(*columns).where(CaseRow.app == app).order_by(CaseRow.created_ns.desc()).limit(limit)
        with Session(self._engine) as session:
            return [
                CaseEntry(id=id_, app=app_, created_ns=created, door=door, inputs=_inputs(inputs))
                for id_, app_, created, door, inputs in session.execute(query)
            ]

    def file(self, case: Case, name: str) -> Path | None:
        """Where a file of a case lies; None for a name that is not among its files."""
        if name not in (RESULT, PICTURE, *case.files):
            return None
        path = self._cases / case.id / name
        return path if path.is_file() else None

    def close(self) -> None:
        """Gives the connections and the folder back."""
        self._engine.dispose()
        self._held.close()

    def _write_files(self, case_id: str, response: Response) -> None:
        document = json.dumps(response.result, indent=2, allow_nan=False) + "\n"
        aside = self._cases / f"{_PARTIAL}{case_id}"
        aside.mkdir(mode=0o700)
        try:
            for name, content in {RESULT: document.encode(), PICTURE: response.picture, **response.files}.items():
                if name in response.files and not _is_free_name(name):
                    raise ValueError(f"{name!r} is no name for a file of a case: it must have no folder and be its own")
                with open(aside / name, "xb", opener=_private) as file:
                    file.write(content)
            publish(aside, self._cases / case_id)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise


def describe_inputs(paths: Iterable[Path], kinds: Sequence[str] | None = None) -> tuple[Input, ...]:
    """Name, size and digest of files; those in a folder are named from it down.

    With ``kinds``, endings such as ``.nii.gz``, no name is kept: a file is called after the ending that it has.
    """
    found = []
    for path in paths:
        members = sorted(member for member in path.rglob("*") if member.is_file()) if path.is_dir() else [path]
        for member in members:
            if kinds is not None:
                name = _kind(member.name, kinds)
            else:
                name = member.relative_to(path.parent).as_posix() if path.is_dir() else member.name
            with member.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            found.append(Input(name=name, bytes=member.stat().st_size, sha256=digest))
    return tuple(found)


def _kind(name: str, kinds: Sequence[str]) -> str:
    # An ending that is not among them may be a part of a person's name.
    found = max((kind for kind in kinds if name.lower().endswith(kind)), key=len, default="")
    return f"{found[1:]} file" if found else "file"


def _make_private(path: Path, mode: int) -> None:
    # Stores of earlier versions were readable by all; on a volume of another owner this is the owner's matter.
    with suppress(PermissionError):
        path.chmod(mode)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)


def _is_free_name(name: str) -> bool:
    return name not in ("", ".", "..", RESULT, PICTURE) and not {"/", "\\", "\0"} & set(name)


def _digest_of_all(inputs: tuple[Input, ...]) -> str:
    lines = sorted(f"{item.sha256}  {item.name}\n" for item in inputs)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _iso(created_ns: int) -> str:
    moment = datetime.fromtimestamp(created_ns / 1e9, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _inputs(column: list[Any]) -> tuple[Input, ...]:
    return tuple(Input(**item) for item in column)


def _case(row: CaseRow) -> Case:
    return Case(
        id=row.id,
        app=row.app,
        created_ns=row.created_ns,
        door=row.door,
        inputs=_inputs(row.inputs),
        inputs_sha256=row.inputs_sha256,
        options=row.options,
        artifact_name=row.artifact_name,
        artifact_version=row.artifact_version,
        result=row.result,
        files=tuple(row.files),
    )
