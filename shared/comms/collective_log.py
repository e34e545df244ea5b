"""A log of the collectives that this process has entered and finished, for the watch and the timing."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

_MAX_SPANS = 100_000


class Span(NamedTuple):
    """A finished collective: ``start`` and ``end`` in seconds of ``time.perf_counter``, ``bytes`` of its tensor.

    ``blocking`` is whether the training thread waited for it from start to end.
    """

    name: str
    group: str
    start: float
    end: float
    bytes: int
    blocking: bool


class Entered(NamedTuple):
    """A collective in progress: ``since`` is its start in seconds since 1970, ``start`` in ``time.perf_counter``."""

    number: int
    name: str
    group: str
    since: float
    start: float
    bytes: int
    blocking: bool


class CollectiveLog:
    """The collectives that this process has entered and finished, in any of its threads.

    ``position`` describes the progress of the training (``at step 12``); ``finished`` counts the finished collectives;
    ``gradients_ready`` is when the latest gradient was computed, in seconds of ``time.perf_counter``.
    """

    def __init__(self) -> None:
        self.position = "before the first step"
        self.finished = 0
        self.last: Entered | None = None
        self.gradients_ready = 0.0
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._entered: dict[int, Entered] = {}
        self._spans: deque[Span] = deque(maxlen=_MAX_SPANS)

    def begin(self, name: str, group: str = "all", bytes: int = 0, *, blocking: bool = False) -> Entered:
        """Records that this process enters a collective. Pass the returned record to ``end``."""
        entered = Entered(next(self._numbers), name, group, time.time(), time.perf_counter(), bytes, blocking)
        with self._lock:
            self._entered[entered.number] = entered
        return entered

    def end(self, entered: Entered) -> None:
        """Records that the collective has finished."""
        now = time.perf_counter()
        with self._lock:
            self._entered.pop(entered.number, None)
            self.finished += 1
            self.last = entered
            self._spans.append(Span(entered.name, entered.group, entered.start, now, entered.bytes, entered.blocking))

    @contextmanager
    def running(self, name: str, group: str = "all", bytes: int = 0, *, blocking: bool = True) -> Iterator[None]:
        """Records a collective from start to end. If it raises, it stays in progress: the process failed in it."""
        entered = self.begin(name, group, bytes, blocking=blocking)
        yield
        self.end(entered)

    def gradient_ready(self) -> None:
        """Records that the backward pass has computed a bucket of gradients; until now it overlapped communication."""
        self.gradients_ready = time.perf_counter()

    def oldest(self) -> Entered | None:
        """The oldest collective in progress, or None."""
        with self._lock:
            return min(self._entered.values(), default=None)

    def take(self) -> list[Span]:
        """Returns the spans since the last call, ordered by their end, and clears them."""
        with self._lock:
            spans = list(self._spans)
            self._spans.clear()
        return spans
