"""Cases: requests with their results and files, kept so that a person can open them again."""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from sqlalchemy import and_, delete, func, or_, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from shared.atomic_files import file_lock, publish
from shared.errors import InvalidInputError
from shared.store import later_files
from shared.store.database import connect, is_database_gone, sqlite_url
from shared.store.disk import DiskFull, disk_fault, has_space, is_disk_full, raising_disk_full
from shared.store.inputs import digest_of_all
from shared.store.later_files import write_private
from shared.store.paging import newest_first
from shared.store.records import Bytes, Case, CaseSummary, InputFile, Outputs
from shared.store.reviews import ReviewStore
from shared.store.tables import CaseRow
from shared.store.unkept import UnkeptCases

log = logging.getLogger("trivium.store")
RESULT, PICTURE, LOCK, DATABASE = "result.json", "picture.png", "server.lock", "trivium.sqlite"
_PARTIAL = ".partial-"
_NOT_KEPT = "the answer was computed but is not kept"
_DAY_NS = 86_400 * 10**9
_UNLIMITED = 2**62
_ABANDONED_AFTER_S = 3600.0


class CaseStore:
    """Cases in a database (SQLite in ``folder``, unless ``url`` names another), with their files in ``folder/cases``.

    On SQLite, only one server at a time can use a folder, and a second is refused; on another database, several servers
    may share the folder and the database. ``shared_with_server`` opens an existing store for maintenance, even while a
    server uses it. ``setting`` is the name of the setting that named the folder, for error messages. All files are
    readable only by the account of the process, because cases may be those of patients.
    """

    def __init__(
        self, folder: Path, url: str | None = None, *, shared_with_server: bool = False, setting: str = "TRIVIUM_STORE"
    ) -> None:
        self.folder = folder
        self.shared = url is not None
        self._unkept = UnkeptCases()
        self._cases = folder / "cases"
        if shared_with_server and not is_store(folder, url):
            raise InvalidInputError(f"there is no store in {folder}; set {setting} to the folder of the server's store")
        with ExitStack() as stack:
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._cases.mkdir(mode=0o700, exist_ok=True)
                _make_private(self._cases, 0o700)
                if not self.shared and not shared_with_server:
                    stack.enter_context(file_lock(folder / LOCK, wait=False))
            except BlockingIOError as error:
                raise InvalidInputError(
                    f"the store {folder} is in use by another server; give this one its own folder "
                    "(TRIVIUM_STORE), stop the other, or let both use one PostgreSQL database (TRIVIUM_STORE_URL)"
                ) from error
            except OSError as error:
                raise InvalidInputError(
                    f"the store {folder} cannot be written ({error.strerror}); set {setting} to another folder"
                ) from error
            if url is None:
                # SQLite creates its journal with the permissions of the database.
                (folder / DATABASE).touch(mode=0o600)
                _make_private(folder / DATABASE, 0o600)
                alternative = f"set {setting} to another folder"
            else:
                alternative = "set TRIVIUM_STORE_URL to another database"
            self.engine = connect(url or sqlite_url(folder / DATABASE), alternative)
            self.reviews = ReviewStore(self.engine)
            self._lock = stack.pop_all()
        if not shared_with_server:
            self._remove_partial_cases()

    @property
    def location(self) -> str:
        """The store's folder, or the URL of its database without the password, for messages."""
        return self.engine.url.render_as_string() if self.shared else str(self.folder.absolute())

    def add(
        self,
        *,
        app: str,
        interface: str,
        inputs: Iterable[InputFile],
        options: Mapping[str, str],
        artifact: tuple[str, int],
        outputs: Outputs,
        max_bytes: int | None = None,
        group: str | None = None,
    ) -> Case:
        """Keeps a case. Its folder is written completely before its row is added to the database.

        If the disk is full, or the case alone takes more than ``max_bytes``, it is kept without its inputs. If there
        is no room even then, it is held in memory for a while instead, and its ``remark`` says why.
        """
        input_files = tuple(inputs)
        case = Case(
            id=uuid.uuid4().hex,
            app=app,
            created_ns=time.time_ns(),
            interface=interface,
            inputs=input_files,
            inputs_sha256=digest_of_all(input_files),
            options=dict(options),
            artifact_name=artifact[0],
            artifact_version=artifact[1],
            files=(*outputs.files, *(name for name in outputs.later if name != PICTURE)),
            bytes=outputs.bytes,
            group=group,
        )
        if outputs.inputs:
            if self._write_with_inputs(case, outputs, max_bytes):
                return case
            outputs = replace(outputs, inputs={})
            case = case.model_copy(update={"bytes": outputs.bytes})
        if max_bytes is not None and case.bytes > max_bytes:
            scope = "together" if group is None else "of its group together"
            sizes = f"it takes {case.bytes / 1e6:.1f} MB, and all cases {scope} may take {max_bytes / 1e6:.1f} MB"
            return self._hold(case, outputs, f"{_NOT_KEPT}: {sizes} (TRIVIUM_KEEP_BYTES)")
        try:
            with raising_disk_full(_NOT_KEPT):
                self._write(case, outputs)
        except DiskFull as full:
            return self._hold(case, outputs, str(full))
        return case

    def _write_with_inputs(self, case: Case, outputs: Outputs, max_bytes: int | None) -> bool:
        """Keeps a case with its inputs. If there is no room for them, it logs a warning and returns False."""
        if max_bytes is not None and case.bytes > max_bytes:
            reason = f"the case would take {case.bytes / 1e6:.1f} MB (TRIVIUM_KEEP_BYTES)"
        elif not has_space(self.folder, case.bytes):
            reason = "the disk of the store would be full"
        else:
            try:
                with raising_disk_full("there was no space for all of it"):
                    self._write(case, outputs)
                return True
            except DiskFull as full:
                reason = str(full)
        log.warning("the inputs are not kept with case %s: %s", case.id, reason)
        return False

    def keep_held(self, case: Case) -> Case | None:
        """Keeps a case that is held in memory, and returns it without its remark.

        Returns the same case if there is still no space, and None if it is no longer held.
        """
        if (outputs := self._unkept.outputs(case.id)) is None:
            return None
        kept = case.model_copy(update={"remark": None})
        try:
            with raising_disk_full(_NOT_KEPT):
                self._write(kept, outputs)
        except DiskFull:
            return case
        self._unkept.remove(case.id)
        return kept

    def _hold(self, case: Case, outputs: Outputs, remark: str) -> Case:
        case = case.model_copy(update={"remark": remark})
        self._unkept.hold(case, outputs)
        return case

    def get(self, app: str, case_id: str, group: str | None = None) -> Case | None:
        """The case with this id of an application, and of a ``group`` if one is given; None if there is none."""
        case = self._unkept.get(case_id)
        if case is None:
            with Session(self.engine) as session:
                row = session.get(CaseRow, case_id)
                case = None if row is None else Case.model_validate(row)
        return case if case is not None and case.app == app and case.seen_by(group) else None

    def recent(
        self, app: str, limit: int = 20, before: str | None = None, group: str | None = None
    ) -> list[CaseSummary]:
        """The newest cases of an application, the newest first, and only those of a ``group`` if one is given.

        With ``before``, the id of a case, only older cases than that. Raises ``InvalidInputError`` (404) if there is no
        such case.
        """
        columns = [getattr(CaseRow, name) for name in CaseSummary.model_fields]
        with Session(self.engine) as session:
            query = newest_first(session, select(*columns).limit(limit), CaseRow, app, before, group)
            return [CaseSummary.model_validate(row) for row in session.execute(query)]

    def remove(self, case: CaseSummary) -> None:
        """Deletes a case and its files, if it still exists."""
        self._unkept.remove(case.id)
        self._remove(case.id)

    def apps(self) -> list[str]:
        """The names of the applications that have cases."""
        with Session(self.engine) as session:
            return sorted(session.scalars(select(CaseRow.app).distinct()))

    def number(self, app: str) -> int:
        """The number of an application's cases."""
        with Session(self.engine) as session:
            return session.scalar(select(func.count()).where(CaseRow.app == app)) or 0

    def used_bytes(self, app: str) -> int:
        """The size of the files of an application's cases, in bytes."""
        with Session(self.engine) as session:
            # PostgreSQL's sum of BIGINT is a NUMERIC, which becomes a Decimal.
            return int(session.scalar(select(func.sum(CaseRow.bytes)).where(CaseRow.app == app)) or 0)

    def kept_by_group(self, app: str) -> dict[str | None, tuple[int, int]]:
        """The number of an application's cases and the bytes of their files, by group; None for no group."""
        query = select(CaseRow.group, func.count(), func.sum(CaseRow.bytes)).where(CaseRow.app == app)
        with Session(self.engine) as session:
            rows = session.execute(query.group_by(CaseRow.group)).all()
        return {group: (int(number), int(size)) for group, number, size in rows}

    def expire(
        self,
        app: str,
        *,
        days: float | None = None,
        number: int | None = None,
        max_bytes: int | None = None,
        group: str | None = None,
    ) -> int:
        """Deletes an application's cases older than ``days``, and the oldest ones above ``number`` or ``max_bytes``.

        The limits apply to each group separately, and to the cases without a group, so no group's cases displace those
        of another. With ``group``, only cases of that group are deleted. A case that alone takes more than
        ``max_bytes`` is deleted and displaces no other. Returns the number of deleted cases.
        """
        number_limit, bytes_limit = (_UNLIMITED if limit is None else limit for limit in (number, max_bytes))
        since_ns = 0 if days is None else time.time_ns() - round(days * _DAY_NS)
        newest = CaseRow.created_ns.desc(), CaseRow.id.desc()
        fitting = func.sum(CaseRow.bytes).filter(CaseRow.bytes <= bytes_limit)
        rank = func.row_number().over(partition_by=CaseRow.group, order_by=newest).label("rank")
        taken = fitting.over(partition_by=CaseRow.group, order_by=newest, rows=(None, 0)).label("taken")
        selected = CaseRow.app == app if group is None else and_(CaseRow.app == app, CaseRow.group == group)
        kept = select(CaseRow.id, CaseRow.created_ns, CaseRow.bytes, rank, taken).where(selected).subquery()
        too_old, too_many = kept.c.created_ns < since_ns, kept.c.rank > number_limit
        too_large = or_(kept.c.bytes > bytes_limit, kept.c.taken > bytes_limit)
        with Session(self.engine) as session:
            expired = list(session.scalars(select(kept.c.id).where(or_(too_old, too_many, too_large))))
        for case_id in expired:
            self._remove(case_id)
        return len(expired)

    def find_fault(self) -> str | None:
        """The reason why no case can be kept now, as a sentence; None if it can. Writes a small temporary file."""
        try:
            with self.engine.connect():
                return disk_fault(self.folder)
        except Exception as error:
            if is_database_gone(error):
                return "the store's database cannot be reached"
            raise

    def read_result(self, case: CaseSummary) -> bytes:
        """The ``result.json`` of a case in a list. Raises ``FileNotFoundError`` if the case was deleted since."""
        return (self._cases / case.id / RESULT).read_bytes()

    def held_file(self, case: Case, name: str) -> bytes | None:
        """A file of a case that is held in memory; None if the case is not held or has no such file."""
        outputs = self._unkept.outputs(case.id)
        content = None if outputs is None else _file_contents(outputs).get(name)
        return None if content is None else bytes(content)

    def file(self, case: Case, name: str) -> Path | None:
        """The path of a file of a case; None if the case has no file of this name, or it is not generated yet."""
        if name not in (RESULT, PICTURE, *case.files):
            return None
        path = self._cases / case.id / name
        return path if path.is_file() else None

    def sources(self, case: Case, name: str) -> dict[str, Path | bytes] | None:
        """The sources of a file that is not generated yet, by name; None if it cannot be generated."""
        if (outputs := self._unkept.outputs(case.id)) is None:
            return later_files.sources(self._cases / case.id, name)
        contents = {**outputs.sources, **_file_contents(outputs)}
        return {source: bytes(contents[source]) for source in outputs.later[name]} if name in outputs.later else None

    def lasting(self, case: Case, name: str) -> Path | None:
        """The path of a source that is kept as long as its case; None if there is none of this name."""
        return later_files.lasting(self._cases / case.id, name)

    def kept_input(self, case: Case, name: str) -> Path | None:
        """The path of a kept input, by the application's name for it; None if it was not kept."""
        return later_files.kept_input(self._cases / case.id, name)

    def keep(self, case: Case, name: str, content: Bytes) -> None:
        """Keeps a file that was just generated. If that fails, as on a full disk, it is generated again on request."""
        if self._unkept.get(case.id) is not None:
            return
        try:
            size = later_files.keep(self._cases / case.id, name, content)
        except OSError as error:
            log.warning("a file of case %s is not kept: %s", case.id, error.strerror)
            return
        with Session(self.engine) as session, session.begin():
            session.execute(update(CaseRow).where(CaseRow.id == case.id).values(bytes=size))

    def close(self) -> None:
        """Closes the database connections and releases the lock on the folder."""
        self.engine.dispose()
        self._lock.close()

    def _remove_partial_cases(self) -> None:
        """Removes cases that a killed server left unfinished; if servers share the folder, only old ones."""
        for partial in self._cases.glob(f"{_PARTIAL}*"):
            with suppress(FileNotFoundError):
                if not self.shared or time.time() - partial.stat().st_mtime > _ABANDONED_AFTER_S:
                    shutil.rmtree(partial, ignore_errors=True)

    def _write(self, case: Case, outputs: Outputs) -> None:
        self._write_files(case.id, outputs)
        try:
            with Session(self.engine) as session, session.begin():
                session.add(CaseRow(**case.model_dump(mode="json", exclude={"remark"})))
        except BaseException:
            shutil.rmtree(self._cases / case.id, ignore_errors=True)
            raise

    def _remove(self, case_id: str) -> None:
        # The folder is renamed first, so that the next server removes what a killed one leaves of the files.
        partial = self._cases / f"{_PARTIAL}{case_id}"
        with suppress(FileNotFoundError):
            (self._cases / case_id).rename(partial)
        try:
            self._remove_row(case_id)
        except OperationalError as error:
            if not is_disk_full(error):
                raise
            # Deleting a row needs space too; on a full disk, deleting the files frees it.
            shutil.rmtree(partial, ignore_errors=True)
            self._remove_row(case_id)
        shutil.rmtree(partial, ignore_errors=True)

    def _remove_row(self, case_id: str) -> None:
        with Session(self.engine) as session, session.begin():
            session.execute(delete(CaseRow).where(CaseRow.id == case_id))

    def _write_files(self, case_id: str, outputs: Outputs) -> None:
        partial = self._cases / f"{_PARTIAL}{case_id}"
        partial.mkdir(mode=0o700)
        try:
            for name in (*outputs.files, *outputs.later, *outputs.sources, *outputs.inputs):
                if not _is_free_name(name) and not (name == PICTURE and name in outputs.later):
                    raise ValueError(f"{name!r} cannot be the name of a case file: it has a folder or is reserved")
            for name, content in _file_contents(outputs).items():
                write_private(partial / name, content)
            later_files.write(partial, outputs)
            publish(partial, self._cases / case_id)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def is_store(folder: Path, url: str | None) -> bool:
    """Whether ``folder`` contains a store, whose database is in the folder or at ``url``."""
    return (folder / "cases" if url is not None else folder / DATABASE).exists()


def _make_private(path: Path, mode: int) -> None:
    # Stores of earlier versions were readable by everyone. On a volume with another owner, that owner sets permissions.
    with suppress(PermissionError):
        path.chmod(mode)


def _file_contents(outputs: Outputs) -> dict[str, Bytes]:
    """The files that exist at once, rather than being generated on request, by name."""
    picture = {} if PICTURE in outputs.later else {PICTURE: outputs.picture}
    return {RESULT: outputs.result, **picture, **outputs.files}


def _is_free_name(name: str) -> bool:
    return name not in ("", RESULT, PICTURE) and not name.startswith(".") and not {"/", "\\", "\0"} & set(name)
