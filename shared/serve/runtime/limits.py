"""Limits on concurrent requests, memory and time. Everything here is used from the event loop only."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from shared.errors import InvalidInputError
from shared.serve.runtime.loading import Loaded, LoadOnce
from shared.serve.runtime.places import Place, reclaim_stalled_place

_MAX_SAMPLES, _MIN_SAMPLES = 16, 4
_RECENT_S = 2.0
"""Requests admitted within this time are expected to be computed before a new one."""

_NOT_LOADED = "not been loaded yet: a server's first start on a machine times each network's programs, once"
_LOADING_RETRY_AFTER_S = 30

_MARGIN_S = 0.5
"""A margin for delays that are not measured here: a busy network and event loop. At most a tenth of the deadline."""


class Busy(InvalidInputError):
    """There is no room for a request (503); the answer carries ``Retry-After``."""

    def __init__(self, title: str, reason: str = "as many requests as it can hold", retry_after_s: int = 5) -> None:
        super().__init__(f"{title} has {reason}; try again in {retry_after_s} seconds", status=503)
        self.retry_after_s = retry_after_s


class DeadlinePassed(InvalidInputError):
    """The request was not answered before its deadline (504)."""

    def __init__(self, title: str) -> None:
        super().__init__(f"{title} missed the deadline; send less at once, or raise the deadline", status=504)


def deadline_error(title: str, waited_s: float, computed_s: float) -> InvalidInputError:
    """The error for a missed deadline: 503 if the request mostly waited in the queue, 504 if it mostly computed."""
    return Busy(title, "too many requests before this one") if waited_s > computed_s else DeadlinePassed(title)


class DurationEstimate:
    """Smoothed statistics of measured durations: their mean, and an upper bound that few exceed.

    The mean and the mean deviation are smoothed exponentially; the bound is the mean plus four deviations, as in
    RFC 6298, section 2.
    """

    def __init__(self) -> None:
        self.mean_s = self._deviation_s = 0.0
        self._measured = False

    @property
    def upper_bound_s(self) -> float:
        """An upper bound in seconds that few durations exceed, at least 0; 0 before the first measurement."""
        return max(0.0, self.mean_s + 4 * self._deviation_s)

    def add(self, seconds: float) -> None:
        """Adds a measurement, in seconds."""
        if not self._measured:
            self.mean_s, self._deviation_s, self._measured = seconds, abs(seconds) / 2, True
            return
        self._deviation_s += (abs(seconds - self.mean_s) - self._deviation_s) / 4
        self.mean_s += (seconds - self.mean_s) / 8


class _GroupLoad:
    """The admitted requests of a group of keys, and how much later than predicted its last answers were."""

    def __init__(self, max_requests: int) -> None:
        self.computing = self.held_back = 0
        self.places: dict[Place, None] = {}
        self.admitted: deque[float] = deque(maxlen=max_requests)
        self.delay = DurationEstimate()

    def ahead(self) -> int:
        """How many requests will be computed before a new one of the group.

        A request that is still being uploaded counts for the first two seconds only, because later ones may overtake
        it, unless it waits with its upload while others go first.
        """
        while self.admitted and time.monotonic() - self.admitted[0] >= _RECENT_S:
            self.admitted.popleft()
        recent = min(len(self.admitted), len(self.places) - self.computing)
        return self.computing + max(recent, self.held_back)


class RequestLimit:
    """Admits up to ``max_requests`` concurrent requests of each group of keys, if they can be answered in time.

    A request is admitted before its body is read. It counts until it is answered, or until its upload stalls while
    another request of its group finds no place. The time to answer a request is predicted from the throughput of the
    last answers, the turns that the groups take, and how much later than predicted the group's last answers were:
    storing, other requests of the batch, and a busy machine add to it.
    """

    def __init__(self, title: str, max_requests: int, deadline_s: float = math.inf) -> None:
        self._title, self._max_requests, self._deadline_s = title, max_requests, deadline_s
        self._groups: dict[str | None, _GroupLoad] = {}
        self._last_answer = -math.inf
        self._seconds_per_answer: deque[float] = deque(maxlen=_MAX_SAMPLES)

    def check(self, group: str | None = None) -> None:
        """Raises ``Busy`` if a request of the group would not be admitted."""
        load, of_group = self._load_of(group), "" if group is None else f" of the group {group}"
        if len(load.places) >= self._max_requests:
            if (stalled := reclaim_stalled_place(load.places)) is None:
                raise Busy(self._title, f"as many requests{of_group} as it can hold")
            del load.places[stalled]
        ahead = self._requests_ahead(group, _GroupLoad.ahead)
        # If nothing is ahead, a request is admitted whatever was measured: the times may have changed.
        if ahead and (predicted_s := self._predict_s(ahead)) is not None:
            # The delay of a group without requests is ignored: refusing them all because of it would mean that it is
            # never measured again, since other groups may always have requests.
            expected_s = predicted_s + (load.delay.upper_bound_s if load.ahead() else 0.0)
            if expected_s > self._deadline_s - min(_MARGIN_S, self._deadline_s / 10):
                reason = f"more requests{of_group} than it can answer before the deadline"
                raise Busy(self._title, reason, max(1, math.ceil(expected_s - self._deadline_s)))

    @contextmanager
    def admit(self, group: str | None = None) -> Iterator[Place]:
        """Holds a place for one request of the group while the block lasts. Raises ``Busy`` if there is none."""
        self.check(group)
        load, place = self._load_of(group), Place(group)
        load.admitted.append(time.monotonic())
        load.places[place] = None
        try:
            yield place
        finally:
            load.places.pop(place, None)

    @contextmanager
    def held_back(self, group: str | None = None) -> Iterator[None]:
        """Counts an admitted request that waits with its upload while other uploads go first."""
        load = self._load_of(group)
        load.held_back += 1
        try:
            yield
        finally:
            load.held_back -= 1

    @contextmanager
    def computing(self, group: str | None = None) -> Iterator[None]:
        """Measures how long an admitted request takes once its body has arrived.

        A request without an answer in time (``Busy``, ``DeadlinePassed``) counts only if it took longer than predicted;
        other failures do not count.
        """
        load = self._load_of(group)
        began = time.monotonic()
        predicted_s = self._predict_s(self._requests_ahead(group, lambda group_load: group_load.computing))
        load.computing += 1
        try:
            yield
        except (Busy, DeadlinePassed):
            if predicted_s is not None and time.monotonic() - began > predicted_s:
                load.delay.add(time.monotonic() - began - predicted_s)
            raise
        finally:
            load.computing -= 1
        now = time.monotonic()
        self._seconds_per_answer.append(now - max(began, self._last_answer))
        self._last_answer = now
        if predicted_s is not None:
            load.delay.add(now - began - predicted_s)

    def _load_of(self, group: str | None) -> _GroupLoad:
        if group not in self._groups:
            self._groups[group] = _GroupLoad(self._max_requests)
        return self._groups[group]

    def _requests_ahead(self, group: str | None, ahead: Callable[[_GroupLoad], int]) -> int:
        """How many requests go before a new one of the group, as ``ahead`` counts them in each group.

        These are all of its own group, and one of every other group for each turn that its own group takes.
        """
        own_ahead = ahead(self._load_of(group))
        return own_ahead + sum(min(ahead(load), own_ahead + 1) for name, load in self._groups.items() if name != group)

    def _predict_s(self, ahead: int) -> float | None:
        """Predicted seconds until a request with ``ahead`` others before it is answered; None with too few samples."""
        if len(self._seconds_per_answer) < _MIN_SAMPLES:
            return None
        return (ahead + 1) * sum(self._seconds_per_answer) / len(self._seconds_per_answer)


class MemoryLimit:
    """Limits the total size of request bodies to ``max_bytes``, and for each group of keys to ``max_bytes_of_group``.

    The second limit leaves room for other groups. If there is no room, a stalled upload is given up.
    """

    def __init__(self, title: str, max_bytes: int, max_bytes_of_group: int | None = None) -> None:
        self._title, self._max_bytes = title, max_bytes
        self._max_bytes_of_group = max_bytes if max_bytes_of_group is None else max_bytes_of_group
        self._reserved: dict[Place, int] = {}

    @contextmanager
    def reserve(self, place: Place) -> Iterator[Callable[[int], None]]:
        """Yields a function that reserves more bytes or raises ``Busy``; all are released when the block ends."""

        def reserve(size: int) -> None:
            while (candidates := self._candidates_to_give_up(size, place.group)) is not None:
                stalled = reclaim_stalled_place(candidates) if size <= self._max_bytes_of_group else None
                if stalled is None:
                    raise Busy(self._title)
                del self._reserved[stalled]
            self._reserved[place] = self._reserved.get(place, 0) + size

        try:
            yield reserve
        finally:
            self._reserved.pop(place, None)

    def _candidates_to_give_up(self, size: int, group: str | None) -> list[Place] | None:
        """The places that may be given up for ``size`` more bytes: the group's own, or all; None if there is room."""
        own_places = [place for place in self._reserved if place.group == group]
        if sum(map(self._reserved.__getitem__, own_places)) + size > self._max_bytes_of_group:
            return own_places
        return list(self._reserved) if sum(self._reserved.values()) + size > self._max_bytes else None


@asynccontextmanager
async def within_deadline(deadline: float, make_error: Callable[[], InvalidInputError]) -> AsyncIterator[None]:
    """Cancels the block at ``deadline`` (of ``time.monotonic``), and raises the error that ``make_error`` returns."""
    try:
        async with asyncio.timeout(deadline - time.monotonic()) as limit:
            yield
    except TimeoutError:
        if limit.expired():
            raise make_error() from None
        raise


async def wait_until_loaded(model: LoadOnce[Loaded], deadline: float) -> Loaded:
    """The model, once it is loaded. Raises ``Busy`` if that takes until after the deadline."""
    async with within_deadline(deadline, lambda: Busy(model.title, _NOT_LOADED, _LOADING_RETRY_AFTER_S)):
        return await model.get()
