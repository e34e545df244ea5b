"""How much may be inside the server at once, and for how long. What stands here is used from the event loop alone."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from shared.errors import InvalidInputError
from shared.serve.runtime.loading import Loaded, LoadOnce
from shared.serve.runtime.places import Place, take_from_stalled

_MEASURED, _MIN_MEASURED = 16, 4
_SOON_S = 2.0
_RESERVE_S = 0.5
"""Left for what is not measured here: a busy network and event loop. At most a tenth of the deadline."""


class Busy(InvalidInputError):
    """There is no room for a request (503); the answer carries ``Retry-After``."""

    def __init__(self, what: str, reason: str = "as many requests as it can hold", retry_after_s: int = 5) -> None:
        super().__init__(f"{what} has {reason}; try again in {retry_after_s} seconds", status=503)
        self.retry_after_s = retry_after_s


class DeadlinePassed(InvalidInputError):
    """The answer was not there in time (504)."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} did not answer before the deadline; send less at once or raise it", status=504)


def too_late(what: str, waited_s: float, computed_s: float) -> InvalidInputError:
    """Why there was no answer in time: there was too much before it (503), or it takes too long itself (504)."""
    return Busy(what, "too many requests before this one") if waited_s > computed_s else DeadlinePassed(what)


class Spread:
    """Seconds as they were measured: their smoothed mean, and a bound that few exceed.

    Mean and mean deviation are smoothed, and the bound is the mean and four deviations, as in RFC 6298, section 2.
    """

    def __init__(self) -> None:
        self.mean_s = self._deviation_s = 0.0
        self._measured = False

    @property
    def bound_s(self) -> float:
        """What few exceed, at least 0; 0 before anything is measured."""
        return max(0.0, self.mean_s + 4 * self._deviation_s)

    def add(self, seconds: float) -> None:
        """Takes in a measurement."""
        if not self._measured:
            self.mean_s, self._deviation_s, self._measured = seconds, abs(seconds) / 2, True
            return
        self._deviation_s += (abs(seconds - self.mean_s) - self._deviation_s) / 4
        self.mean_s += (seconds - self.mean_s) / 8


class _Inside:
    """What a group of keys has inside, and how much later than foretold its last answers came."""

    def __init__(self, most: int) -> None:
        self.computing = self.held_back = 0
        self.places: dict[Place, None] = {}
        self.admitted: deque[float] = deque(maxlen=most)
        self.later = Spread()

    def ahead(self) -> int:
        """How many will be computed before a new one of the group: a body that is long in coming may be overtaken."""
        while self.admitted and time.monotonic() - self.admitted[0] >= _SOON_S:
            self.admitted.popleft()
        soon = min(len(self.admitted), len(self.places) - self.computing)
        return self.computing + max(soon, self.held_back)


class RequestLimit:
    """At most ``most`` requests of each group of keys at a time, and no more than can be answered before the deadline.

    A request is admitted before its body is read, and counts until answered, or until its upload stalls while another
    of its group finds no place. How many can be answered follows from the
    time that passed for each of the last answers while requests were waiting for them, from the turns that groups take,
    and from how much later than that foretold the last answers of the group came: storing, batch mates and a busy
    machine add to it.
    """

    def __init__(self, what: str, most: int, deadline_s: float = math.inf) -> None:
        self._what, self._most, self._deadline_s = what, most, deadline_s
        self._groups: dict[str | None, _Inside] = {}
        self._last_answer = -math.inf
        self._seconds: deque[float] = deque(maxlen=_MEASURED)

    def check(self, group: str | None = None) -> None:
        """Raises ``Busy`` where a request of the group would not be admitted."""
        inside, whose = self._of(group), "" if group is None else f" of the group {group}"
        if len(inside.places) >= self._most:
            if (stalled := take_from_stalled(inside.places)) is None:
                raise Busy(self._what, f"as many requests{whose} as it can hold")
            del inside.places[stalled]
        ahead = self._in_turn(group, _Inside.ahead)
        # Where nothing is ahead, one is let in whatever was measured: the times may have changed.
        if ahead and (foretold_s := self._foretold_s(ahead)) is not None:
            # A group with nothing inside cannot find out that its answers come in time again: others' may never pause.
            expected_s = foretold_s + (inside.later.bound_s if inside.ahead() else 0.0)
            if expected_s > self._deadline_s - min(_RESERVE_S, self._deadline_s / 10):
                reason = f"more requests{whose} than it can answer before the deadline"
                raise Busy(self._what, reason, max(1, math.ceil(expected_s - self._deadline_s)))

    @contextmanager
    def admit(self, group: str | None = None) -> Iterator[Place]:
        """Gives one request of the group its place while the block lasts. Raises ``Busy`` where there is none."""
        self.check(group)
        inside, place = self._of(group), Place(group)
        inside.admitted.append(time.monotonic())
        inside.places[place] = None
        try:
            yield place
        finally:
            inside.places.pop(place, None)

    @contextmanager
    def held_back(self, group: str | None = None) -> Iterator[None]:
        """Counts an admitted request whose body comes but is not read yet, for others go first."""
        inside = self._of(group)
        inside.held_back += 1
        try:
            yield
        finally:
            inside.held_back -= 1

    @contextmanager
    def computing(self, group: str | None = None) -> Iterator[None]:
        """Measures how long an admitted request takes whose body is there.

        One that fails counts only where that took longer than its answer should have.
        """
        inside = self._of(group)
        began, foretold_s = time.monotonic(), self._foretold_s(self._in_turn(group, lambda one: one.computing))
        inside.computing += 1
        try:
            yield
        except (Busy, DeadlinePassed):
            if foretold_s is not None and time.monotonic() - began > foretold_s:
                inside.later.add(time.monotonic() - began - foretold_s)
            raise
        finally:
            inside.computing -= 1
        now = time.monotonic()
        self._seconds.append(now - max(began, self._last_answer))
        self._last_answer = now
        if foretold_s is not None:
            inside.later.add(now - began - foretold_s)

    def _of(self, group: str | None) -> _Inside:
        if group not in self._groups:
            self._groups[group] = _Inside(self._most)
        return self._groups[group]

    def _in_turn(self, group: str | None, ahead: Callable[[_Inside], int]) -> int:
        """How many go before a new request of the group: ``ahead`` of its own, and of each other one for each turn."""
        own = ahead(self._of(group))
        return own + sum(min(ahead(one), own + 1) for name, one in self._groups.items() if name != group)

    def _foretold_s(self, ahead: int) -> float | None:
        """When an answer comes that has so many ahead, by the last times; None where too few were measured."""
        if len(self._seconds) < _MIN_MEASURED:
            return None
        return (ahead + 1) * sum(self._seconds) / len(self._seconds)


class MemoryLimit:
    """At most ``most`` bytes of request bodies, those of all requests together; one that stalls gives way to others.

    Those of one group of keys take ``most_of_group`` at the most, so that there is room for others.
    """

    def __init__(self, what: str, most: int, most_of_group: int | None = None) -> None:
        self._what, self._most = what, most
        self._most_of_group = most if most_of_group is None else most_of_group
        self._held: dict[Place, int] = {}

    @contextmanager
    def reserve(self, place: Place) -> Iterator[Callable[[int], None]]:
        """Gives a function that reserves so many bytes more, or raises ``Busy``; all are freed when the block ends."""

        def reserve(size: int) -> None:
            while (within := self._without_room(size, place.group)) is not None:
                stalled = take_from_stalled(within) if size <= self._most_of_group else None
                if stalled is None:
                    raise Busy(self._what)
                del self._held[stalled]
            self._held[place] = self._held.get(place, 0) + size

        try:
            yield reserve
        finally:
            self._held.pop(place, None)

    def _without_room(self, size: int, group: str | None) -> list[Place] | None:
        """Among which one must give way for so many bytes more: the group's own, or all; None where there is room."""
        own = [place for place in self._held if place.group == group]
        if sum(map(self._held.__getitem__, own)) + size > self._most_of_group:
            return own
        return list(self._held) if sum(self._held.values()) + size > self._most else None


@asynccontextmanager
async def until(deadline: float, late: Callable[[], InvalidInputError]) -> AsyncIterator[None]:
    """Cancels what is awaited inside at ``deadline`` (of ``time.monotonic``), and raises what ``late`` makes."""
    try:
        async with asyncio.timeout(deadline - time.monotonic()) as limit:
            yield
    except TimeoutError:
        if limit.expired():
            raise late() from None
        raise


async def loaded(model: LoadOnce[Loaded], deadline: float) -> Loaded:
    """The model, once it is loaded. Raises ``Busy`` where that takes longer than to the deadline."""
    async with until(deadline, lambda: Busy(model.what, "not been loaded yet")):
        return await model.get()
