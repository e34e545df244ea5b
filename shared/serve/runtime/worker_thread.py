"""A worker that computes in a thread of the server instead of a process."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from shared.errors import InvalidInputError
from shared.progress import progress_listener
from shared.serve.runtime.worker import WorkerListener
from shared.serve.worker.handler import Handler, Stage
from shared.serve.worker.messages import Message

log = logging.getLogger("trivium.serve")


class WorkerThread:
    """A worker for tests, notebooks, and systems without worker processes.

    It can neither be stopped nor limited in memory, and a fault that would end a worker process ends the server.
    """

    def __init__(self, make_handler: Callable[[], Handler], title: str) -> None:
        self.max_requests, self.load_s = 1, 0.0
        self.programs: dict[str, str] = {}
        self._make_handler, self._title = make_handler, title
        self._handler: Handler | None = None
        self._threads = ThreadPoolExecutor(1, f"worker-{title}")
        self._listener: WorkerListener | None = None

    def start(self, listener: WorkerListener) -> None:
        self._listener = listener
        began = time.monotonic()
        loading = asyncio.get_running_loop().run_in_executor(self._threads, self._load, self._stage_reporter())
        loading.add_done_callback(lambda done: self._finish_loading(done, began))

    def begin(self, batch: Sequence[Message]) -> bool:
        assert self._handler is not None
        computing = asyncio.get_running_loop().run_in_executor(
            self._threads, self._handler.handle, batch, self._stage_reporter()
        )
        computing.add_done_callback(self._finish_computing)
        return True

    def stop(self) -> bool:
        """Returns False: a thread cannot be stopped."""
        return False

    def close(self) -> None:
        """Cancels what has not started, and does not wait for the rest."""
        self._listener = None
        self._threads.shutdown(wait=False, cancel_futures=True)

    def describe(self) -> dict[str, int | None]:
        """None for both: it has no process of its own."""
        return {"pid": None, "memory_bytes": None}

    def _load(self, stage: Stage) -> Handler:
        with progress_listener(stage):
            return self._make_handler()

    def _stage_reporter(self) -> Stage:
        """A function for the thread that reports a stage to the listener on the event loop."""
        loop = asyncio.get_running_loop()

        def report(name: str) -> None:
            with suppress(RuntimeError):  # the server's event loop is closed
                loop.call_soon_threadsafe(self._report_stage, name)

        return report

    def _report_stage(self, name: str) -> None:
        if self._listener is not None:
            self._listener.on_stage(self, name)

    def _finish_loading(self, done: asyncio.Future[Handler], began: float) -> None:
        if self._listener is None or done.cancelled():
            return
        error = done.exception()
        if error is None:
            self._handler = done.result()
            self.max_requests, self.load_s = self._handler.max_requests, time.monotonic() - began
            self.programs = dict(getattr(self._handler, "programs", {}))
            self._listener.on_ready(self)
            return
        if not isinstance(error, InvalidInputError):
            log.error("%s cannot be loaded", self._title, exc_info=error)
        reason = str(error) if isinstance(error, InvalidInputError) else f"{type(error).__name__}: {error}"
        self._listener.on_end(self, reason, refused=True)

    def _finish_computing(self, done: asyncio.Future[list[Message]]) -> None:
        if self._listener is None or done.cancelled():
            return
        error = done.exception()
        if error is None:
            self._listener.on_replies(self, done.result())
        else:
            # An exception that a handler does not catch, such as SystemExit, would have ended a worker process.
            log.error("%s: a worker failed", self._title, exc_info=error)
            self._listener.on_end(self, repr(error), refused=False)
