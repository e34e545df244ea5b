"""Jobs: requests that are answered later, kept so that a server that was killed finds them again."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Engine, delete, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from shared.data.archive import member_names
from shared.errors import InvalidInputError
from shared.store.inputs import describe_inputs, digest_of_all
from shared.store.paging import newest_first
from shared.store.records import Origin
from shared.store.tables import JobRow
from shared.utc_time import iso_utc

JobState = Literal["queued", "running", "done", "failed", "cancelled"]
FINAL = ("done", "failed", "cancelled")
_NS = 10**9
_LEFT_S = 3600.0
_SHORT_NUMBER = re.compile(r"\d{1,5}")


class Job(BaseModel):
    """A job as the store gives it out; see ``JobRow``."""

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
        """The time of the job in ISO 8601, UTC, to the millisecond."""
        return iso_utc(self.created_ns / 1e9)


def without_names(problem: str, files: Sequence[str], members: Sequence[str] = ()) -> str:
    """A sentence that stays, with the files by their place in the upload: a name may be a person's.

    ``members`` are the names in archives among them. A short number, as of an image, names nobody, and stays.
    """
    words: dict[str, str] = {}
    for member in members:
        words |= dict.fromkeys((member, member.rpartition("/")[2]), "a file of the archive")
    for number, file in enumerate(files, 1):
        words[file.rpartition("/")[2]] = f"file {number}" if len(files) > 1 else "the file"
    names = sorted((name for name in words if name and not _SHORT_NUMBER.fullmatch(name)), key=len, reverse=True)
    if not names:
        return problem
    pattern = "|".join(map(re.escape, names))
    return re.sub(rf"(?<!\w)(?:{pattern})(?!\w)", lambda found: words[found[0]], problem)


@dataclass(frozen=True, kw_only=True, slots=True)
class NewJob:
    """A job as it is handed in: for which application, whence, and its form."""

    app: str
    origin: Origin
    files: Sequence[Path]
    options: Mapping[str, str]
    sample: str | None

    def identifier(self, key: str) -> str:
        """Its identifier under a key of its client's: the same for the same key and form.

        Another group's is another. It reads the files. Of the key, which may name a person, nothing else is kept.
        """
        digest = digest_of_all(describe_inputs(self.files))
        form = [self.app, key, sorted(self.options.items()), self.sample, digest]
        form += [] if self.origin.group is None else [self.origin.group]
        return hashlib.sha256(json.dumps(form).encode()).hexdigest()[:32]


def remove_files_left(engine: Engine, folder: Path, *, alone: bool) -> None:
    """Removes files of jobs that ended, or were never known, when a server was killed; where others share it the old.

    Those of jobs that are not answered stay.
    """
    for left in (folder / "jobs").glob("*"):
        with Session(engine) as session:
            row = session.get(JobRow, left.name)
        with suppress(FileNotFoundError):
            old = alone or time.time() - left.stat().st_mtime > _LEFT_S
            if old and (row is None or row.state in FINAL):
                shutil.rmtree(left, ignore_errors=True)


class JobStore:
    """Jobs in the store's database, the files of those that are not answered under ``folder/jobs``.

    ``server`` is the name of the one that claims jobs here. With ``told`` the webhook is to be told of every job that
    ends.
    """

    def __init__(self, engine: Engine, folder: Path, server: str, *, told: bool = False) -> None:
        self._engine, self._jobs, self._server, self._told = engine, folder / "jobs", server, told
        self._seen: dict[str, dict[tuple[str, int], float]] = {}
        """Of each application's running jobs the last sign of the server, and when it was first seen (monotonic)."""
        self._turns: dict[tuple[str, str | None], float] = {}
        """When this server last claimed a job of an application and a group (monotonic)."""
        self._jobs.mkdir(mode=0o700, exist_ok=True)

    def add(self, job: NewJob, uploads: Path, identifier: str | None = None) -> Job:
        """Keeps a job; ``uploads``, the folder of its files, becomes its own.

        With the ``identifier`` of a job that is there, that one is returned; refuses (409) while it is being handed in.
        """
        now, number = time.time_ns(), identifier or uuid.uuid4().hex
        try:
            uploads.rename(self._jobs / number)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            words = "the same job is being handed in under this Idempotency-Key; ask again in a second"
            raise InvalidInputError(words, status=409) from error
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
            return known  # it was handed in twice at once, and this is the other's folder too
        except BaseException:
            shutil.rmtree(self._jobs / number, ignore_errors=True)
            raise
        return Job.model_validate(row)

    def folder(self, job: Job) -> Path:
        """The folder of a job's files, and of what is made while it is answered."""
        return self._jobs / job.id

    def get(self, app: str, job_id: str, group: str | None = None) -> Job | None:
        """The job of an application, and of a ``group`` where one is given; or None."""
        with Session(self._engine) as session:
            row = session.get(JobRow, job_id)
            seen = row is not None and row.app == app and group in (None, row.group)
            return Job.model_validate(row) if seen else None

    def recent(self, app: str, limit: int = 20, before: str | None = None, group: str | None = None) -> list[Job]:
        """The newest jobs of an application, the newest first; of those that came ``before`` the job of that name.

        Only those of a ``group`` where one is given. Refuses (404) where there is no such job.
        """
        with Session(self._engine) as session:
            query = newest_first(session, select(JobRow).limit(limit), JobRow, app, before, group)
            return [Job.model_validate(row) for row in session.scalars(query)]

    def unanswered(self, app: str) -> dict[str, int]:
        """How many jobs of an application are queued, and how many running."""
        wanted = ("queued", "running")
        query = select(JobRow.state, func.count()).where(JobRow.app == app, JobRow.state.in_(wanted))
        with Session(self._engine) as session:
            found = session.execute(query.group_by(JobRow.state)).all()
        return dict.fromkeys(wanted, 0) | {str(state): int(number) for state, number in found}

    def number_waiting(self, app: str, group: str | None) -> int:
        """How many jobs of an application and a group are not answered; of None those without a group."""
        wanted = JobRow.app == app, JobRow.state.in_(("queued", "running")), JobRow.group.is_not_distinct_from(group)
        with Session(self._engine) as session:
            return session.scalar(select(func.count()).select_from(JobRow).where(*wanted)) or 0

    def waiting_by_group(self, app: str) -> dict[str | None, int]:
        """How many jobs of an application are not answered, of each group that has some; None has no group."""
        wanted = JobRow.app == app, JobRow.state.in_(("queued", "running"))
        with Session(self._engine) as session:
            found = session.execute(select(JobRow.group, func.count()).where(*wanted).group_by(JobRow.group)).all()
        return {group: int(number) for group, number in found}

    def states(self, app: str) -> dict[str, int]:
        """How many jobs of an application are in each state."""
        query = select(JobRow.state, func.count()).where(JobRow.app == app).group_by(JobRow.state)
        with Session(self._engine) as session:
            return {str(state): int(number) for state, number in session.execute(query)}

    def claim(self, app: str, lost_after_s: float, most_attempts: int) -> Job | None:
        """The oldest job that waits, or whose server has not said for ``lost_after_s`` that it runs it; or None.

        Groups take turns, so that none waits for all that another has handed in. It is this server's now. One that was
        begun ``most_attempts`` times has failed. How long a server was silent counts from when this one saw its last
        sign: clocks differ between servers, and are set.
        """
        columns = JobRow.id, JobRow.attempts, JobRow.state, JobRow.changed_ns, JobRow.group
        wanted = JobRow.app == app, JobRow.state.in_(("queued", "running"))
        with Session(self._engine) as session:
            candidates = session.execute(select(*columns).where(*wanted).order_by(JobRow.created_ns)).all()
        now, seen = time.monotonic(), self._seen.get(app, {})
        signs = [(one.id, one.changed_ns) for one in candidates if one.state == "running"]
        since = self._seen[app] = {sign: seen.get(sign, now) for sign in signs}
        in_turn = sorted(candidates, key=lambda one: self._turns.get((app, one.group), float("-inf")))
        for job_id, attempts, state, changed_ns, group in in_turn:
            if state == "running" and now - since[job_id, changed_ns] < lost_after_s:
                continue
            free = (JobRow.state == state) & (JobRow.changed_ns == changed_ns)
            if attempts >= most_attempts:
                words = f"it was begun {attempts} times, and whoever computed it ended each time"
                self._finish(job_id, state="failed", problem=words, status=500, only_if=free)
                continue
            values = {"state": "running", "server": self._server, "attempts": attempts + 1, "stage": "waiting"}
            if self._change(job_id, free, JobRow.attempts == attempts, **values):
                self._turns[app, group] = now
                return self.get(app, job_id)
        return None

    def release(self, job: Job) -> None:
        """Gives a job back that this server cannot finish, as when it ends; that was no attempt."""
        self._change(job.id, self._own, state="queued", server=None, stage="", attempts=job.attempts - 1)

    def beat(self, job: Job, stage: str | None = None) -> bool:
        """Says that this server still runs the job, and at which stage; False where it is not its own any more."""
        return self._change(job.id, self._own, **({} if stage is None else {"stage": stage}))

    def done(self, job: Job, case_id: str) -> bool:
        """The job is answered by a case; False where it is not this server's any more."""
        return self._finish(job.id, state="done", case_id=case_id, only_if=self._own)

    def fail(self, job: Job, problem: str, status: int) -> None:
        """The job cannot be answered, for the reason given; of its files, and those in archives, no name is kept."""
        members = [name for file in job.files for name in member_names(self.folder(job) / file)]
        words = without_names(problem, job.files, members)
        self._finish(job.id, state="failed", problem=words, status=status, only_if=self._own)

    def cancel(self, job: Job) -> bool:
        """Cancels a job that is not answered yet; False where it is."""
        return self._finish(job.id, state="cancelled", only_if=JobRow.state.in_(("queued", "running")))

    def claim_to_tell(self, least_s: float, most_s: float) -> tuple[Job, bool] | None:
        """A job that ended and whose webhook is to be told now, and whether that is the last time; or None.

        It comes again after as long as has passed since it ended, after ``least_s`` at the least, unless ``was_told``
        is called; for the last time when ``most_s`` have passed.
        """
        now = time.time_ns()
        # A job that ended later than now did so before the clock was set back.
        due = or_(JobRow.tell_ns <= now, JobRow.changed_ns > now + round(least_s * _NS))
        waiting = select(JobRow).where(JobRow.tell_ns.is_not(None), due).order_by(JobRow.tell_ns).limit(1)
        with Session(self._engine) as session, session.begin():
            row = session.scalar(waiting)
            if row is None:
                return None
            ended = min(row.changed_ns, now)
            job, passed = Job.model_validate(row), now - ended
            last = passed >= most_s * _NS
            again = None if last else now + max(passed, round(least_s * _NS))
            same = JobRow.id == row.id, JobRow.tell_ns == row.tell_ns
            done = session.execute(update(JobRow).where(*same).values(tell_ns=again, changed_ns=ended))
        return (job, last) if done.rowcount else None  # type: ignore[attr-defined]

    def was_told(self, job: Job) -> None:
        """The webhook was told of the job."""
        with Session(self._engine) as session, session.begin():
            session.execute(update(JobRow).where(JobRow.id == job.id).values(tell_ns=None))

    def apps(self) -> list[str]:
        """The applications of which there are jobs."""
        with Session(self._engine) as session:
            return sorted(session.scalars(select(JobRow.app).distinct()))

    def expire(self, app: str, days: float) -> int:
        """Deletes an application's jobs that ended longer than ``days`` ago; their cases stay. Returns how many."""
        ended = JobRow.state.in_(FINAL), JobRow.changed_ns < time.time_ns() - round(days * 86_400 * _NS)
        with Session(self._engine) as session, session.begin():
            done = session.execute(delete(JobRow).where(JobRow.app == app, *ended))
        return int(done.rowcount)  # type: ignore[attr-defined]

    @property
    def _own(self) -> Any:
        return (JobRow.state == "running") & (JobRow.server == self._server)

    def _finish(self, job_id: str, *, only_if: Any, **values: Any) -> bool:
        # The names go with the files: they may be those of persons.
        tell_ns = time.time_ns() if self._told else None
        changed = self._change(job_id, only_if, stage="", server=None, files=[], tell_ns=tell_ns, **values)
        if changed:
            shutil.rmtree(self._jobs / job_id, ignore_errors=True)
        return changed

    def _change(self, job_id: str, *conditions: Any, **values: Any) -> bool:
        given = {"changed_ns": time.time_ns(), **values}
        with Session(self._engine) as session, session.begin():
            done = session.execute(update(JobRow).where(JobRow.id == job_id, *conditions).values(**given))
        return bool(done.rowcount)  # type: ignore[attr-defined]
