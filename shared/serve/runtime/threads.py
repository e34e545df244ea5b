"""Threads for one kind of work, which no other work waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from shared.threads import usable_cores

Result = TypeVar("Result")


class Threads:
    """As many as usable cores unless a number is given."""

    def __init__(self, name: str, number: int | None = None) -> None:
        self._pool = ThreadPoolExecutor(number or usable_cores(), thread_name_prefix=name)

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
