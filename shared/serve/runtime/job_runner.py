"""Runs an application's jobs one at a time, in separate workers, so that no request has to wait for a job."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

from fastapi.concurrency import run_in_threadpool

from shared.errors import InvalidInputError
from shared.serve.runtime.limits import Busy
from shared.serve.runtime.recurring_error import RecurringError, is_temporary
from shared.serve.runtime.worker_errors import WorkerNotLoaded
from shared.serve.worker.handler import WorkerFault
from shared.store.database import reason_of
from shared.store.jobs import FINAL, Job, JobStore

log = logging.getLogger("trivium.serve")
_POLL_INTERVAL_S = 5.0
_HEARTBEAT_INTERVAL_S = 10.0
_HEARTBEAT_TIMEOUT_S = 60.0
_MAX_ATTEMPTS = 3
_REREAD_INTERVAL_S = 2.0
_STOP_CHECK_INTERVAL_S = 0.25
_WRITE_RETRY_INTERVAL_S = 1.0
_KEEPALIVE_INTERVAL_S = 15.0
"""An event stream sends something this often, because proxies close a connection that is silent for a minute or so."""


class JobRunner:
    """Claims the jobs of the application ``app``, and calls ``compute``, which answers a job and returns a case's id.

    A job whose server was killed is claimed again: on start if this server has ``exclusive`` use of the store, else one
    minute after the last heartbeat of that server.
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
        self._heartbeat_timeout_s = 0.0 if exclusive else _HEARTBEAT_TIMEOUT_S
        self._claim_error = RecurringError(
            log, f"the jobs of {app} cannot be claimed", f"the jobs of {app} are claimed again"
        )
        self._wake = asyncio.Event()
        self._changed = asyncio.Condition()
        self._running: tuple[str, asyncio.Task[str]] | None = None
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts claiming jobs. Creates the events anew, because a server may be restarted on another event loop."""
        self._wake, self._changed = asyncio.Event(), asyncio.Condition()
        self._loop = asyncio.create_task(self._run_jobs())

    async def stop(self) -> None:
        """Stops, and releases the running job for the next server."""
        if self._loop is not None:
            self._loop.cancel()
            with suppress(asyncio.CancelledError):
                await self._loop

    def wake(self) -> None:
        """Looks for a job at once: there is a new one."""
        self._wake.set()

    async def cancel(self, job: Job) -> bool:
        """Cancels a job, and its computation if it runs on this server; returns False if the job has already ended."""
        cancelled = await run_in_threadpool(self._jobs.cancel, job)
        if cancelled and self._running is not None and self._running[0] == job.id:
            self._running[1].cancel()
        await self._notify_followers()
        return cancelled

    async def follow(self, job: Job, is_stopping: Callable[[], bool]) -> AsyncIterator[Job | None]:
        """Yields the job, and again after every change until it has ended or is deleted; None as a keepalive.

        Stops soon after ``is_stopping`` returns True. A job counts as unchanged while the database cannot be reached.
        """
        yield job
        last_sent = time.monotonic()
        while job.state not in FINAL and not is_stopping():
            await self._wait_for_change(is_stopping)
            current: Job | None = job
            try:
                current = await run_in_threadpool(self._jobs.get, job.app, job.id)
            except Exception as error:
                if not is_temporary(error):
                    raise
            if current is None:
                return
            if current != job or time.monotonic() - last_sent >= _KEEPALIVE_INTERVAL_S:
                yield current if current != job else None
                last_sent = time.monotonic()
            job = current

    async def _wait_for_change(self, is_stopping: Callable[[], bool]) -> None:
        """Returns when a job of this server has changed, or after two seconds: another server may have changed it."""
        end = time.monotonic() + _REREAD_INTERVAL_S
        while time.monotonic() < end and not is_stopping():
            with suppress(TimeoutError):
                async with asyncio.timeout(_STOP_CHECK_INTERVAL_S), self._changed:
                    await self._changed.wait()
                return

    async def _run_jobs(self) -> None:
        while True:
            try:
                job = await run_in_threadpool(self._jobs.claim, self._app, self._heartbeat_timeout_s, _MAX_ATTEMPTS)
                self._claim_error.ended()
                self._heartbeat_timeout_s = _HEARTBEAT_TIMEOUT_S
                if job is not None:
                    await self._run_job(job)
                    continue
            except Exception as error:
                self._claim_error.occurred(error)
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_INTERVAL_S):
                    await self._wake.wait()
            self._wake.clear()

    async def _run_job(self, job: Job) -> None:
        stages: asyncio.Queue[str] = asyncio.Queue()
        computation = asyncio.ensure_future(self._compute(job, stages.put_nowait))
        self._running = job.id, computation
        heartbeats = asyncio.create_task(self._send_heartbeats(job, stages, computation))
        try:
            await asyncio.wait({computation})
            await self._store_outcome(job, computation)
        except asyncio.CancelledError:
            computation.cancel()
            await asyncio.wait({computation})
            try:
                await run_in_threadpool(self._jobs.release, job)
            except Exception as error:
                message = "the job %s is not released; it restarts when its heartbeat has timed out: %s"
                log.error(message, job.id, reason_of(error))
            raise
        finally:
            self._running = None
            heartbeats.cancel()
            await self._notify_followers()

    async def _store_outcome(self, job: Job, computation: asyncio.Task[str]) -> None:
        try:
            await self._write_with_retries(self._jobs.mark_done, job, computation.result())
        except asyncio.CancelledError:
            if not computation.cancelled():
                raise  # the server is shutting down
        except Busy as refusal:
            # Its worker ended, or there was no room. Both may be temporary; this attempt counts towards the limit.
            await self._release_counted(job)
            if isinstance(refusal, WorkerNotLoaded):
                await asyncio.sleep(refusal.retry_after_s)  # until then no worker is started
        except InvalidInputError as refusal:
            await self._write_with_retries(self._jobs.fail, job, str(refusal), refusal.status)
        except Exception as error:
            if is_temporary(error):
                message = "the answer of the job %s is not kept: the store cannot be written: %s"
                log.error(message, job.id, reason_of(error))
                await self._release_counted(job)
                return
            if isinstance(error, WorkerFault):
                log.error("the job %s failed: %s", job.id, error)  # the worker has logged the cause
            else:
                log.exception("the job %s failed", job.id)
            message = "something went wrong in the server; its log has the details"
            await self._write_with_retries(self._jobs.fail, job, message, 500)

    async def _release_counted(self, job: Job) -> None:
        await self._write_with_retries(self._jobs.release, job.model_copy(update={"attempts": job.attempts + 1}))

    async def _write_with_retries(self, change: Callable[..., object], *arguments: object) -> None:
        """Makes a change in the store, with retries until the heartbeat of the job times out anyway."""
        end = time.monotonic() + _HEARTBEAT_TIMEOUT_S
        while True:
            try:
                await run_in_threadpool(change, *arguments)
                return
            except Exception as error:
                if not is_temporary(error) or time.monotonic() >= end:
                    raise
            await asyncio.sleep(_WRITE_RETRY_INTERVAL_S)

    async def _send_heartbeats(self, job: Job, stages: asyncio.Queue[str], computation: asyncio.Task[str]) -> None:
        """Stores heartbeats and the current stage of the job; stops computing it if another server has cancelled it."""
        while True:
            stage = None
            with suppress(TimeoutError):
                async with asyncio.timeout(_HEARTBEAT_INTERVAL_S):
                    stage = await stages.get()
            try:
                is_claimed = await run_in_threadpool(self._jobs.send_heartbeat, job, stage)
            except Exception as error:
                if not is_temporary(error):
                    log.exception("the stage of the job %s cannot be stored", job.id)
                continue
            if not is_claimed:
                computation.cancel()
                return
            await self._notify_followers()

    async def _notify_followers(self) -> None:
        async with self._changed:
            self._changed.notify_all()
