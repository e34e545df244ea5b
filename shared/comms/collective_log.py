"""Which collectives this process is in, and which it has been through: what the watch tells and the timing reads."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

_KEPT_SPANS = 100_000


class Span(NamedTuple):
    """A collective that has ended: ``start`` and ``end`` in seconds of ``time.perf_counter``, ``bytes`` handed to it.

    ``blocking`` is whether the training's own thread waited for it from beginning to end.
    """

    name: str
    group: str
    start: float
    end: float
    bytes: int
    blocking: bool


class Entered(NamedTuple):
    """A collective that has begun: ``since`` in seconds since 1970 by this process's clock."""

    number: int
    name: str
    group: str
    since: float
    start: float
    bytes: int
    blocking: bool


class CollectiveLog:
    """Collectives that this process has entered and left, from any of its threads.

    ``position`` is where the training stands in words (``step 12``); ``finished`` counts the collectives it has left;
    ``gradients_ready`` is when the newest gradient was computed, in seconds of ``time.perf_counter``.
    """

    def __init__(self) -> None:
        self.position = "before the first step"
        self.finished = 0
        self.last: Entered | None = None
        self.gradients_ready = 0.0
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._entered: dict[int, Entered] = {}
        self._spans: deque[Span] = deque(maxlen=_KEPT_SPANS)

    def begin(self, name: str, group: str = "all", bytes: int = 0, *, blocking: bool = False) -> Entered:
        """Notes that this process enters a collective; ``end`` takes what is returned."""
        entered = Entered(next(self._numbers), name, group, time.time(), time.perf_counter(), bytes, blocking)
        with self._lock:
            self._entered[entered.number] = entered
        return entered

    def end(self, entered: Entered) -> None:
        """Notes that it is through."""
        now = time.perf_counter()
        with self._lock:
            self._entered.pop(entered.number, None)
            self.finished += 1
            self.last = entered
            self._spans.append(Span(entered.name, entered.group, entered.start, now, entered.bytes, entered.blocking))

    @contextmanager
    def running(self, name: str, group: str = "all", bytes: int = 0, *, blocking: bool = True) -> Iterator[None]:
        """A collective from beginning to end. One that raises stays entered: it is what the process died in."""
        entered = self.begin(name, group, bytes, blocking=blocking)
        yield
        self.end(entered)

    def gradient_ready(self) -> None:
        """Notes that a backward pass has computed a bucket of gradients: until then it hid what communicated."""
        self.gradients_ready = time.perf_counter()

    def oldest(self) -> Entered | None:
        """The collective that this process has been in for longest, None where it is in none."""
        with self._lock:
            return min(self._entered.values(), default=None)

    def take(self) -> list[Span]:
        """The spans since the last call, in the order of their ends."""
        with self._lock:
            spans = list(self._spans)
            self._spans.clear()
        return spans
