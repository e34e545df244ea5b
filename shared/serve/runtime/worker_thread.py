"""A thread of the server that computes as a worker process would."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from shared.errors import InvalidInputError
from shared.serve.runtime.worker import Listener
from shared.serve.worker.handler import Handler
from shared.serve.worker.messages import Message

log = logging.getLogger("trivium.serve")


class WorkerThread:
    """For tests, notebooks, and systems without worker processes.

    It can be neither stopped nor bounded in memory, and what would end a process ends the server.
    """

    def __init__(self, make: Callable[[], Handler], what: str) -> None:
        self.most, self.load_s = 1, 0.0
        self.programs: dict[str, str] = {}
        self._make, self._what = make, what
        self._handler: Handler | None = None
        self._threads = ThreadPoolExecutor(1, f"worker-{what}")
        self._listener: Listener | None = None

    def start(self, listener: Listener) -> None:
        """Loads on the thread."""
        self._listener = listener
        began = time.monotonic()
        loading = asyncio.get_running_loop().run_in_executor(self._threads, self._make)
        loading.add_done_callback(lambda done: self._loaded(done, began))

    def begin(self, batch: Sequence[Message]) -> bool:
        """Computes on the thread."""
        assert self._handler is not None
        loop = asyncio.get_running_loop()

        def stage(name: str) -> None:
            with suppress(RuntimeError):  # the server is gone
                loop.call_soon_threadsafe(self._has_stage, name)

        computing = loop.run_in_executor(self._threads, self._handler.handle, batch, stage)
        computing.add_done_callback(self._computed)
        return True

    def stop(self) -> bool:
        """A thread goes on until it is done."""
        return False

    def close(self) -> None:
        """Begins nothing more, and does not wait."""
        self._listener = None
        self._threads.shutdown(wait=False, cancel_futures=True)

    def describe(self) -> dict[str, int | None]:
        """It has no process of its own."""
        return {"pid": None, "memory_bytes": None}

    def _has_stage(self, name: str) -> None:
        if self._listener is not None:
            self._listener.has_stage(self, name)

    def _loaded(self, done: asyncio.Future[Handler], began: float) -> None:
        if self._listener is None or done.cancelled():
            return
        error = done.exception()
        if error is None:
            self._handler = done.result()
            self.most, self.load_s = self._handler.most, time.monotonic() - began
            self.programs = dict(getattr(self._handler, "programs", {}))
            self._listener.is_ready(self)
            return
        if not isinstance(error, InvalidInputError):
            log.error("%s cannot be loaded", self._what, exc_info=error)
        why = str(error) if isinstance(error, InvalidInputError) else f"{type(error).__name__}: {error}"
        self._listener.has_ended(self, why, refused=True)

    def _computed(self, done: asyncio.Future[list[Message]]) -> None:
        if self._listener is None or done.cancelled():
            return
        error = done.exception()
        if error is None:
            self._listener.has_replied(self, done.result())
        else:
            # What a handler does not catch (SystemExit) would have ended a process.
            log.error("%s: a worker failed", self._what, exc_info=error)
            self._listener.has_ended(self, repr(error), refused=False)
