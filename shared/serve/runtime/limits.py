"""How much may be inside the server at once, and for how long. What stands here is used from the event loop alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from shared.errors import InvalidInputError


class Busy(InvalidInputError):
    """There is no room for a request (503); the answer carries ``Retry-After``."""

    retry_after_s = 5

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} has as many requests as it can hold; try again in a few seconds", status=503)


class DeadlinePassed(InvalidInputError):
    """The answer was not there in time (504)."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} did not answer before the deadline; send less at once or raise it", status=504)


class RequestLimit:
    """At most ``most`` requests at a time. A request is admitted before its body is read, and counts until answered."""

    def __init__(self, what: str, most: int) -> None:
        self._what, self._most, self._inside = what, most, 0

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Counts one request while the block lasts. Raises ``Busy`` where there is no room."""
        if self._inside >= self._most:
            raise Busy(self._what)
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1


class MemoryLimit:
    """At most ``most`` bytes of request bodies, those of all requests together."""

    def __init__(self, what: str, most: int) -> None:
        self._what, self._most, self._held = what, most, 0

    @contextmanager
    def reserve(self) -> Iterator[Callable[[int], None]]:
        """Gives a function that reserves so many bytes more, or raises ``Busy``; all are freed when the block ends."""
        reserved = 0

        def reserve(size: int) -> None:
            nonlocal reserved
            if self._held + size > self._most:
                raise Busy(self._what)
            self._held += size
            reserved += size

        try:
            yield reserve
        finally:
            self._held -= reserved


@asynccontextmanager
async def until(deadline: float, what: str) -> AsyncIterator[None]:
    """Cancels what is awaited inside at ``deadline`` (of ``time.monotonic``), and raises ``DeadlinePassed``."""
    try:
        async with asyncio.timeout(deadline - time.monotonic()) as limit:
            yield
    except TimeoutError:
        if limit.expired():
            raise DeadlinePassed(what) from None
        raise
