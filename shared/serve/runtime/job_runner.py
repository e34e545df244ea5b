"""Runs an application's jobs, one after the other, in a worker of their own: nobody who waits stands behind a job."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

from fastapi.concurrency import run_in_threadpool

from shared.errors import InvalidInputError
from shared.serve.runtime.limits import Busy
from shared.serve.worker.handler import WorkerFault
from shared.store.database import is_database_gone
from shared.store.disk import is_disk_full
from shared.store.jobs import FINAL, Job, JobStore

log = logging.getLogger("trivium.serve")
_LOOK_S = 5.0
_BEAT_S = 10.0
_LOST_AFTER_S = 60.0
_MAX_ATTEMPTS = 3
_READ_AGAIN_S = 2.0
_LOOK_WHETHER_ENDED_S = 0.25
_WRITE_AGAIN_S = 1.0
_QUIET_S = 15.0
"""Proxies close a connection over which nothing comes for so long as a minute."""


class JobRunner:
    """Claims jobs of the application called ``app`` and has ``compute`` answer them, which returns a case's id.

    A job whose server was killed is claimed again: at once where this server has the store ``exclusive``, else when a
    minute has passed without a sign of that server.
    """

    def __init__(
        self,
        app: str,
        jobs: JobStore,
        compute: Callable[[Job, Callable[[str], None]], Awaitable[str]],
        *,
        exclusive: bool,
    ) -> None:
        self._app, self._jobs, self._compute = app, jobs, compute
        self._lost_after_s = 0.0 if exclusive else _LOST_AFTER_S
        self._wake = asyncio.Event()
        self._changed = asyncio.Condition()
        self._running: tuple[str, asyncio.Task[str]] | None = None
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to look for jobs. A server may be started anew on another event loop, to which these would not go."""
        self._wake, self._changed = asyncio.Event(), asyncio.Condition()
        self._loop = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Gives the job that runs back, for the next server."""
        if self._loop is not None:
            self._loop.cancel()
            with suppress(asyncio.CancelledError):
                await self._loop

    def wake(self) -> None:
        """Has it look at once: there is a new job."""
        self._wake.set()

    async def cancel(self, job: Job) -> bool:
        """Cancels a job, and stops what computes it here; False where it has ended."""
        cancelled = await run_in_threadpool(self._jobs.cancel, job)
        if cancelled and self._running is not None and self._running[0] == job.id:
            self._running[1].cancel()
        await self._tell()
        return cancelled

    async def follow(self, job: Job, ends: Callable[[], bool]) -> AsyncIterator[Job | None]:
        """The job, and again whenever it has changed, until it has ended or is gone; None where nothing did for long.

        It stops soon after ``ends`` says so. While the database is away, nothing changes.
        """
        yield job
        told = time.monotonic()
        while job.state not in FINAL and not ends():
            await self._wait_for_change(ends)
            now: Job | None = job
            try:
                now = await run_in_threadpool(self._jobs.get, job.app, job.id)
            except Exception as error:
                if not _may_pass(error):
                    raise
            if now is None:
                return
            if now != job or time.monotonic() - told >= _QUIET_S:
                yield now if now != job else None
                told = time.monotonic()
            job = now

    async def _wait_for_change(self, ends: Callable[[], bool]) -> None:
        """Returns when a job here has changed, or after two seconds: another server may have changed it."""
        until = time.monotonic() + _READ_AGAIN_S
        while time.monotonic() < until and not ends():
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_WHETHER_ENDED_S), self._changed:
                    await self._changed.wait()
                return

    async def _run(self) -> None:
        while True:
            try:
                job = await run_in_threadpool(self._jobs.claim, self._app, self._lost_after_s, _MAX_ATTEMPTS)
                self._lost_after_s = _LOST_AFTER_S
                if job is not None:
                    await self._answer(job)
                    continue
            except Exception as error:
                words = f"the jobs of {self._app} cannot be looked at"
                if _may_pass(error):
                    log.error("%s: %s", words, error)
                else:
                    log.exception(words)
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._wake.wait()
            self._wake.clear()

    async def _answer(self, job: Job) -> None:
        stages: asyncio.Queue[str] = asyncio.Queue()
        computing = asyncio.ensure_future(self._compute(job, stages.put_nowait))
        self._running = job.id, computing
        beating = asyncio.create_task(self._beat(job, stages, computing))
        try:
            await asyncio.wait({computing})
            await self._end(job, computing)
        except asyncio.CancelledError:
            computing.cancel()
            await asyncio.wait({computing})
            try:
                await run_in_threadpool(self._jobs.release, job)
            except Exception as error:
                log.error("the job %s is not given back, and begun anew when it is missed: %s", job.id, error)
            raise
        finally:
            self._running = None
            beating.cancel()
            await self._tell()

    async def _end(self, job: Job, computing: asyncio.Task[str]) -> None:
        try:
            await self._write(self._jobs.done, job, computing.result())
        except asyncio.CancelledError:
            if not computing.cancelled():
                raise  # the server ends
        except Busy:
            # Its worker ended, or there was no room: that may pass, and claiming it again counts.
            await self._release_counted(job)
        except InvalidInputError as refusal:
            await self._write(self._jobs.fail, job, str(refusal), refusal.status)
        except Exception as error:
            if _may_pass(error):
                log.error("the answer of the job %s is not kept, for the store cannot be written: %s", job.id, error)
                await self._release_counted(job)
                return
            if isinstance(error, WorkerFault):
                log.error("the job %s failed: %s", job.id, error)  # the worker has logged the cause
            else:
                log.exception("the job %s failed", job.id)
            words = "something went wrong in the server; its log holds the details"
            await self._write(self._jobs.fail, job, words, 500)

    async def _release_counted(self, job: Job) -> None:
        await self._write(self._jobs.release, job.model_copy(update={"attempts": job.attempts + 1}))

    async def _write(self, change: Callable[..., object], *given: object) -> None:
        """Makes a change in the store as soon as that can be written, until the job is missed anyway."""
        end = time.monotonic() + _LOST_AFTER_S
        while True:
            try:
                await run_in_threadpool(change, *given)
                return
            except Exception as error:
                if not _may_pass(error) or time.monotonic() >= end:
                    raise
            await asyncio.sleep(_WRITE_AGAIN_S)

    async def _beat(self, job: Job, stages: asyncio.Queue[str], computing: asyncio.Task[str]) -> None:
        """Says at which stage the job is, and that it goes on; stops it where another server has cancelled it."""
        while True:
            stage = None
            with suppress(TimeoutError):
                async with asyncio.timeout(_BEAT_S):
                    stage = await stages.get()
            try:
                own = await run_in_threadpool(self._jobs.beat, job, stage)
            except Exception as error:
                if not _may_pass(error):
                    log.exception("what the job %s does is not told", job.id)
                continue
            if not own:
                computing.cancel()
                return
            await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _may_pass(error: BaseException) -> bool:
    """Whether the store may be written later: its database is away, or its disk full."""
    return is_database_gone(error) or is_disk_full(error)
