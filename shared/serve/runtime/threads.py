"""A thread pool for one kind of work, so that other work does not wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from shared.threads import usable_cores

Result = TypeVar("Result")


class Threads:
    """A pool of ``number`` threads; by default as many as there are usable cores."""

    def __init__(self, name: str, number: int | None = None) -> None:
        self._pool = ThreadPoolExecutor(number or usable_cores(), thread_name_prefix=name)

    async def run(self, function: Callable[..., Result], *arguments: object) -> Result:
        """The result of the function. If cancelled before the function has started, it does not start."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    async def run_or_undo(self, function: Callable[[], Result], undo: Callable[[Result], object]) -> Result:
        """The result of the function. If cancelled after it has started, its thread passes the result to ``undo``."""
        working = self._pool.submit(function)
        try:
            return await asyncio.wrap_future(working)
        except asyncio.CancelledError:
            working.add_done_callback(partial(_undo, undo))
            raise

    def close(self) -> None:
        """Cancels what has not started, and does not wait for the rest."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _undo(undo: Callable[[Result], object], working: Future[Result]) -> None:
    if not working.cancelled() and working.exception() is None:
        undo(working.result())
