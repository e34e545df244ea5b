"""Threads for one kind of work, and what is loaded once on one of them."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Generic, TypeVar

from shared.errors import InvalidInputError

Result = TypeVar("Result")
Loaded = TypeVar("Loaded")


class Workers:
    """Threads for one kind of work, which no other work waits for; as many as usable cores unless a number is given."""

    def __init__(self, name: str, number: int | None = None) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(number or cores, thread_name_prefix=name)

    async def run(self, function: Callable[..., Result], *arguments: object) -> Result:
        """What the function returns. When cancelled, what has not begun is not begun."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    async def run_or_undo(self, function: Callable[[], Result], undo: Callable[[Result], object]) -> Result:
        """What the function returns. When cancelled after it has begun, what it returned is undone on its thread."""
        working = self._pool.submit(function)
        try:
            return await asyncio.wrap_future(working)
        except asyncio.CancelledError:
            working.add_done_callback(partial(_undo, undo))
            raise

    def close(self) -> None:
        """Begins nothing more, and does not wait."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _undo(undo: Callable[[Result], object], working: Future[Result]) -> None:
    if not working.cancelled() and working.exception() is None:
        undo(working.result())


class LoadOnce(Generic[Loaded]):
    """Something that the first who asks loads, on a thread of ``workers``; who asks meanwhile waits for the same.

    ``load`` makes it, ``check`` says without loading whether it could be (both raise ``InvalidInputError`` where it
    cannot), ``close`` ends it. A load that failed is tried again by the next who asks.
    """

    def __init__(
        self,
        what: str,
        workers: Workers,
        *,
        load: Callable[[], Loaded],
        check: Callable[[], object],
        close: Callable[[Loaded], None],
    ) -> None:
        self.what = what
        self.failure: str | None = None
        """Why the last load failed; None once it is loaded."""
        self._workers, self._load, self._check, self._close = workers, load, check, close
        self._lock = threading.Lock()
        self._closed = False
        self._value: Loaded | None = None

    @property
    def value(self) -> Loaded | None:
        """What was loaded, or None before."""
        return self._value

    async def get(self) -> Loaded:
        """What is loaded, once it is. Raises ``InvalidInputError`` (503) where it cannot be."""
        return self._value if self._value is not None else await self._workers.run(self.load)

    def load(self) -> Loaded:
        """Loads where that has not been done, and blocks meanwhile. Raises as ``get`` does."""
        with self._lock:
            if self._value is None:
                try:
                    self._value = self._load()
                except InvalidInputError as refusal:
                    self.failure = str(refusal)
                    raise InvalidInputError(str(refusal), status=503) from refusal
                except Exception as error:
                    self.failure = f"{type(error).__name__}: {error}"
                    raise
                self.failure = None
                if self._closed:
                    self._close(self._value)
            return self._value

    def check(self) -> None:
        """Raises ``InvalidInputError`` where it could not be loaded. Nothing is loaded."""
        self._check()

    def close(self) -> None:
        """Closes what is loaded or being loaded, and waits for nothing."""
        self._closed = True
        if self._value is not None:
            self._close(self._value)
