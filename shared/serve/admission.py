"""How much may be inside the server at once: requests, threads that read and write them, and bytes in memory.

What stands here is used from the event loop alone.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from shared.errors import InvalidInputError

Result = TypeVar("Result")


class Busy(InvalidInputError):
    """There is no room for a request (503); the answer carries ``Retry-After``."""

    retry_after_s = 5

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} has as many requests as it can hold; try again in a few seconds", status=503)


class Places:
    """Places for requests. Each takes one before its body is read, and gives it back with its answer."""

    def __init__(self, what: str, number: int) -> None:
        self._what, self._number, self._taken = what, number, 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Takes a place; raises ``Busy`` where there is none."""
        if self._taken >= self._number:
            raise Busy(self._what)
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


class Memory:
    """Bytes of request bodies, those of all requests together."""

    def __init__(self, what: str, most: int) -> None:
        self._what, self._most, self._held = what, most, 0

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """Gives a function that takes so many bytes more, or raises ``Busy``; at the end they are given back."""
        mine = 0

        def take(size: int) -> None:
            nonlocal mine
            if self._held + size > self._most:
                raise Busy(self._what)
            self._held += size
            mine += size

        try:
            yield take
        finally:
            self._held -= mine


class Workers:
    """Threads for one kind of work, which no other work waits for; as many as usable cores unless a number is given."""

    def __init__(self, name: str, number: int | None = None) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(number or cores, thread_name_prefix=name)

    async def run(self, function: Callable[..., Result], *arguments: object) -> Result:
        """What the function returns. When cancelled, what has not begun is not begun."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def close(self) -> None:
        """Begins nothing more, and does not wait."""
        self._pool.shutdown(wait=False, cancel_futures=True)
