"""Jobs: requests that are answered later, stored so that they survive when the server is killed."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from sqlalchemy import ColumnElement, Engine, delete, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from typing_extensions import TypeAliasType

from shared.atomic_files import remove_folder
from shared.data.archive import member_names
from shared.errors import InvalidInputError
from shared.store.inputs import describe_inputs, digest_of_all
from shared.store.paging import newest_first
from shared.store.records import Origin
from shared.store.tables import JobRow
from shared.utc_time import iso_utc

JobState = TypeAliasType("JobState", Literal["queued", "running", "done", "failed", "cancelled"])
FINAL = ("done", "failed", "cancelled")
_UNANSWERED = ("queued", "running")
_NS = 10**9
_ABANDONED_AFTER_S = 3600.0
_SHORT_NUMBER = re.compile(r"\d{1,5}")


class Job(BaseModel):
    """A job as the store returns it; for the fields see ``JobRow``."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    id: str
    app: str
    created_ns: int
    interface: str
    files: tuple[str, ...]
    options: dict[str, str]
    sample: str | None
    state: JobState
    stage: str
    attempts: int
    case_id: str | None
    problem: str | None
    status: int | None
    group: str | None = None

    @property
    def created(self) -> str:
        """The time of submission in ISO 8601, UTC, to the millisecond."""
        return iso_utc(self.created_ns / 1e9)


def without_names(problem: str, files: Sequence[str], members: Sequence[str] = ()) -> str:
    """The error message with file names replaced by their position in the upload, since names may be those of persons.

    ``members`` are the names of the files inside uploaded archives. Short numbers, such as the name of an image, are
    not replaced, because they identify nobody.
    """
    replacements: dict[str, str] = {}
    for member in members:
        replacements |= dict.fromkeys((member, member.rpartition("/")[2]), "a file of the archive")
    for number, file in enumerate(files, 1):
        replacements[file.rpartition("/")[2]] = f"file {number}" if len(files) > 1 else "the file"
    names = sorted((name for name in replacements if name and not _SHORT_NUMBER.fullmatch(name)), key=len, reverse=True)
    if not names:
        return problem
    pattern = "|".join(map(re.escape, names))
    return re.sub(rf"(?<!\w)(?:{pattern})(?!\w)", lambda match: replacements[match[0]], problem)


@dataclass(frozen=True, kw_only=True, slots=True)
class NewJob:
    """A job as a client submits it: the application, the origin of the request, and the fields of its form."""

    app: str
    origin: Origin
    files: Sequence[Path]
    options: Mapping[str, str]
    sample: str | None

    def identifier(self, key: str) -> str:
        """The job's id for an idempotency key: the same for the same key, form and group.

        It hashes the content of the files. The key itself, which may name a person, is not kept.
        """
        digest = digest_of_all(describe_inputs(self.files))
        form = [self.app, key, sorted(self.options.items()), self.sample, digest]
        form += [] if self.origin.group is None else [self.origin.group]
        return hashlib.sha256(json.dumps(form).encode()).hexdigest()[:32]


def remove_abandoned_files(engine: Engine, folder: Path, *, exclusive: bool) -> None:
    """Removes files that a killed server left of jobs that have ended or were never added to the database.

    Without ``exclusive`` use of the store, it removes only files older than an hour.
    """
    for job_folder in (folder / "jobs").glob("*"):
        with Session(engine) as session:
            row = session.get(JobRow, job_folder.name)
        with suppress(FileNotFoundError):
            old = exclusive or time.time() - job_folder.stat().st_mtime > _ABANDONED_AFTER_S
            if old and (row is None or row.state in FINAL):
                remove_folder(job_folder)


class JobStore:
    """Jobs in the store's database, with the files of unanswered jobs in ``folder/jobs``.

    ``server`` is the name of this server when it claims jobs. With ``has_webhook``, the webhook is notified of every
    job that ends.
    """

    def __init__(self, engine: Engine, folder: Path, server: str, *, has_webhook: bool = False) -> None:
        self._engine, self._jobs, self._server, self._has_webhook = engine, folder / "jobs", server, has_webhook
        self._heartbeats: dict[str, dict[tuple[str, int], float]] = {}
        """For each application: (job id, time of its heartbeat) of running jobs, and when this server first saw it, by
        the monotonic clock."""
        self._last_claims: dict[tuple[str, str | None], float] = {}
        """When this server last claimed a job of an application and group, by the monotonic clock."""
        self._jobs.mkdir(mode=0o700, exist_ok=True)

    def add(self, job: NewJob, uploads: Path, identifier: str | None = None) -> Job:
        """Adds a job and moves ``uploads``, the folder of its files, to the job's folder.

        If a job with this ``identifier`` exists, it returns that one. Raises ``InvalidInputError`` (409) while that job
        is still being submitted.
        """
        now, number = time.time_ns(), identifier or uuid.uuid4().hex
        try:
            uploads.rename(self._jobs / number)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            message = "the same job is being submitted with this Idempotency-Key; try again in a second"
            raise InvalidInputError(message, status=409) from error
        row = JobRow(
            id=number,
            app=job.app,
            created_ns=now,
            changed_ns=now,
            interface=job.origin.interface,
            files=[path.relative_to(uploads).as_posix() for path in job.files],
            options=dict(job.options),
            sample=job.sample,
            state="queued",
            stage="",
            attempts=0,
            group=job.origin.group,
        )
        try:
            with Session(self._engine, expire_on_commit=False) as session, session.begin():
                session.add(row)
        except IntegrityError:
            if identifier is None or (known := self.get(job.app, identifier)) is None:
                raise
            return known  # it was submitted twice at the same time; both use the same folder
        except BaseException:
            remove_folder(self._jobs / number)
            raise
        return Job.model_validate(row)

    def folder(self, job: Job) -> Path:
        """The folder of a job's files, and of the files that are written while it is answered."""
        return self._jobs / job.id

    def get(self, app: str, job_id: str, group: str | None = None) -> Job | None:
        """The job with this id of an application, and of a ``group`` if one is given; None if there is none."""
        with Session(self._engine) as session:
            row = session.get(JobRow, job_id)
            visible = row is not None and row.app == app and group in (None, row.group)
            return Job.model_validate(row) if visible else None

    def recent(self, app: str, limit: int = 20, before: str | None = None, group: str | None = None) -> list[Job]:
        """The newest jobs of an application, the newest first, and only those of a ``group`` if one is given.

        With ``before``, the id of a job, only older jobs than that. Raises ``InvalidInputError`` (404) if there is no
        such job.
        """
        with Session(self._engine) as session:
            query = newest_first(session, select(JobRow).limit(limit), JobRow, app, before, group)
            return [Job.model_validate(row) for row in session.scalars(query)]

    def unanswered(self, app: str) -> dict[str, int]:
        """The numbers of an application's queued and running jobs, by state."""
        query = select(JobRow.state, func.count()).where(*_unanswered(app)).group_by(JobRow.state)
        with Session(self._engine) as session:
            rows = session.execute(query).all()
        return dict.fromkeys(_UNANSWERED, 0) | {str(state): int(number) for state, number in rows}

    def number_waiting(self, app: str, group: str | None) -> int:
        """The number of unanswered jobs of an application and a group; for None, of those without a group."""
        return self.waiting_by_group(app).get(group, 0)

    def waiting_by_group(self, app: str) -> dict[str | None, int]:
        """The number of an application's unanswered jobs in each group that has any; None for jobs without a group."""
        query = select(JobRow.group, func.count()).where(*_unanswered(app)).group_by(JobRow.group)
        with Session(self._engine) as session:
            return {group: int(number) for group, number in session.execute(query)}

    def states(self, app: str) -> dict[str, int]:
        """The number of an application's jobs in each state."""
        query = select(JobRow.state, func.count()).where(JobRow.app == app).group_by(JobRow.state)
        with Session(self._engine) as session:
            return {str(state): int(number) for state, number in session.execute(query)}

    def claim(self, app: str, heartbeat_timeout_s: float, max_attempts: int) -> Job | None:
        """Claims the oldest job that is queued, or whose server sent no heartbeat for ``heartbeat_timeout_s``.

        Returns None if there is no such job. Groups take turns, so that a group does not wait for all jobs of another:
        if servers share the store, a group with fewer running jobs comes first.
        A job that was already started ``max_attempts`` times fails. The silence of a server is measured by this
        server's monotonic clock from the moment it saw the last heartbeat, because the clocks of servers differ and can
        be changed.
        """
        columns = JobRow.id, JobRow.attempts, JobRow.state, JobRow.changed_ns, JobRow.group
        query = select(*columns).where(*_unanswered(app)).order_by(JobRow.created_ns)
        with Session(self._engine) as session:
            candidates = session.execute(query).all()
        now, known = time.monotonic(), self._heartbeats.get(app, {})
        heartbeats = [(job.id, job.changed_ns) for job in candidates if job.state == "running"]
        first_seen = self._heartbeats[app] = {heartbeat: known.get(heartbeat, now) for heartbeat in heartbeats}
        running, claimable = Counter[str | None](), []
        for job in candidates:
            if job.state == "running" and now - first_seen[job.id, job.changed_ns] < heartbeat_timeout_s:
                running[job.group] += 1
            else:
                claimable.append(job)
        last = self._last_claims
        in_turn = sorted(claimable, key=lambda job: (running[job.group], last.get((app, job.group), float("-inf"))))
        for job_id, attempts, state, changed_ns, group in in_turn:
            unclaimed = (JobRow.state == state) & (JobRow.changed_ns == changed_ns)
            if attempts >= max_attempts:
                problem = f"it was started {attempts} times, and each time its server or worker ended"
                self._finish(job_id, state="failed", problem=problem, status=500, only_if=unclaimed)
                continue
            values = {"state": "running", "server": self._server, "attempts": attempts + 1, "stage": "waiting"}
            if self._change(job_id, unclaimed, JobRow.attempts == attempts, **values):
                self._last_claims[app, group] = now
                return self.get(app, job_id)
        return None

    def release(self, job: Job) -> None:
        """Puts a job back into the queue if this server cannot finish it, for example because it shuts down.

        This does not count as an attempt.
        """
        self._change(job.id, self._claimed_here, state="queued", server=None, stage="", attempts=job.attempts - 1)

    def send_heartbeat(self, job: Job, stage: str | None = None) -> bool:
        """Records that this server still runs the job, and its stage; returns False if it no longer holds the job."""
        return self._change(job.id, self._claimed_here, **({} if stage is None else {"stage": stage}))

    def mark_done(self, job: Job, case_id: str) -> bool:
        """Marks the job as answered by a case; returns False if the job is no longer claimed by this server."""
        return self._finish(job.id, state="done", case_id=case_id, only_if=self._claimed_here)

    def fail(self, job: Job, problem: str, status: int) -> None:
        """Marks the job as failed for the given reason, without the names of files and archive members."""
        members = [name for file in job.files for name in member_names(self.folder(job) / file)]
        anonymous = without_names(problem, job.files, members)
        self._finish(job.id, state="failed", problem=anonymous, status=status, only_if=self._claimed_here)

    def cancel(self, job: Job) -> bool:
        """Cancels an unanswered job; returns False if the job has already ended."""
        return self._finish(job.id, state="cancelled", only_if=JobRow.state.in_(_UNANSWERED))

    def claim_notification(self, min_interval_s: float, max_age_s: float) -> tuple[Job, bool] | None:
        """An ended job of which the webhook should be notified now, and whether this is the last attempt; or None.

        Unless ``mark_notified`` is called, the job is returned again after as much time as has passed since it ended,
        but at least ``min_interval_s``; for the last time when it ended ``max_age_s`` ago.
        """
        now = time.time_ns()
        # A job whose end is in the future ended before the clock was set back.
        due = or_(JobRow.tell_ns <= now, JobRow.changed_ns > now + round(min_interval_s * _NS))
        waiting = select(JobRow).where(JobRow.tell_ns.is_not(None), due).order_by(JobRow.tell_ns).limit(1)
        with Session(self._engine) as session, session.begin():
            row = session.scalar(waiting)
            if row is None:
                return None
            ended = min(row.changed_ns, now)
            job, passed = Job.model_validate(row), now - ended
            last = passed >= max_age_s * _NS
            retry_ns = None if last else now + max(passed, round(min_interval_s * _NS))
            unclaimed = JobRow.id == row.id, JobRow.tell_ns == row.tell_ns
            result = session.execute(update(JobRow).where(*unclaimed).values(tell_ns=retry_ns, changed_ns=ended))
        return (job, last) if result.rowcount else None  # type: ignore[attr-defined]

    def mark_notified(self, job: Job) -> None:
        """Records that the webhook was notified of the job."""
        with Session(self._engine) as session, session.begin():
            session.execute(update(JobRow).where(JobRow.id == job.id).values(tell_ns=None))

    def apps(self) -> list[str]:
        """The names of the applications that have jobs."""
        with Session(self._engine) as session:
            return sorted(session.scalars(select(JobRow.app).distinct()))

    def expire(self, app: str, days: float, group: str | None = None) -> int:
        """Deletes jobs of an application that ended more than ``days`` ago, but not their cases; returns the number.

        With ``group``, only jobs of that group.
        """
        ended = JobRow.state.in_(FINAL), JobRow.changed_ns < time.time_ns() - round(days * 86_400 * _NS)
        query = delete(JobRow).where(JobRow.app == app, *ended)
        if group is not None:
            query = query.where(JobRow.group == group)
        with Session(self._engine) as session, session.begin():
            result = session.execute(query)
        return int(result.rowcount)  # type: ignore[attr-defined]

    @property
    def _claimed_here(self) -> Any:
        return (JobRow.state == "running") & (JobRow.server == self._server)

    def _finish(self, job_id: str, *, only_if: Any, **values: Any) -> bool:
        # The names of the files are deleted with the files, because they may be those of persons.
        tell_ns = time.time_ns() if self._has_webhook else None
        changed = self._change(job_id, only_if, stage="", server=None, files=[], tell_ns=tell_ns, **values)
        if changed:
            remove_folder(self._jobs / job_id)
        return changed

    def _change(self, job_id: str, *conditions: Any, **values: Any) -> bool:
        changes = {"changed_ns": time.time_ns(), **values}
        with Session(self._engine) as session, session.begin():
            result = session.execute(update(JobRow).where(JobRow.id == job_id, *conditions).values(**changes))
        return bool(result.rowcount)  # type: ignore[attr-defined]


def _unanswered(app: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """The conditions that select an application's unanswered jobs."""
    return JobRow.app == app, JobRow.state.in_(_UNANSWERED)
