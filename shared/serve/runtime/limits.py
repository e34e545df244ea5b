"""How much may be inside the server at once, and for how long. What stands here is used from the event loop alone."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from shared.errors import InvalidInputError

_MEASURED, _LEAST_MEASURED = 16, 4
_SOON_S = 2.0


class Busy(InvalidInputError):
    """There is no room for a request (503); the answer carries ``Retry-After``."""

    def __init__(self, what: str, reason: str = "as many requests as it can hold", retry_after_s: int = 5) -> None:
        super().__init__(f"{what} has {reason}; try again in a few seconds", status=503)
        self.retry_after_s = retry_after_s


class DeadlinePassed(InvalidInputError):
    """The answer was not there in time (504)."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} did not answer before the deadline; send less at once or raise it", status=504)


class RequestLimit:
    """At most ``most`` requests at a time, and no more than can be answered before the deadline.

    A request is admitted before its body is read, and counts until answered. How many can be answered follows from the
    time that passed for each of the last answers while requests were waiting for them.
    """

    def __init__(self, what: str, most: int, deadline_s: float = math.inf) -> None:
        self._what, self._most, self._deadline_s = what, most, deadline_s
        self._inside = self._computing = 0
        self._admitted: deque[float] = deque(maxlen=most)
        self._last_answer = -math.inf
        self._seconds: deque[float] = deque(maxlen=_MEASURED)

    def check(self) -> None:
        """Raises ``Busy`` where a request would not be admitted."""
        if self._inside >= self._most:
            raise Busy(self._what)
        ahead = self._ahead()
        # Where nothing is ahead, one is let in whatever was measured: the times may have changed.
        if ahead and len(self._seconds) >= _LEAST_MEASURED:
            expected_s = (ahead + 1) * sum(self._seconds) / len(self._seconds)
            if expected_s > self._deadline_s:
                reason = "more requests than it can answer before the deadline"
                raise Busy(self._what, reason, math.ceil(expected_s - self._deadline_s))

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Counts one request while the block lasts. Raises ``Busy`` where there is no room."""
        self.check()
        self._admitted.append(time.monotonic())
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    def _ahead(self) -> int:
        """How many requests will be computed before a new one: a body that is long in coming may be overtaken."""
        now = time.monotonic()
        coming = sum(now - admitted < _SOON_S for admitted in self._admitted)
        return self._computing + min(coming, self._inside - self._computing)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Measures how long an admitted request takes whose body is there; one that fails is not measured."""
        began = time.monotonic()
        self._computing += 1
        try:
            yield
        finally:
            self._computing -= 1
        now = time.monotonic()
        self._seconds.append(now - max(began, self._last_answer))
        self._last_answer = now


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
