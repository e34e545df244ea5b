"""Progress of long computations: the computation reports stages to the listener around it, if there is one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")
_INTERVAL_S = 0.25
_listener: ContextVar[Callable[[str], None] | None] = ContextVar("listener", default=None)


@contextmanager
def progress_listener(listener: Callable[[str], None]) -> Iterator[None]:
    """Calls ``listener`` with each stage that is reported inside, a short text such as ``tiles 12 of 80``."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def stage_prefix(stage: str) -> Iterator[None]:
    """Prefixes each stage that is reported inside with ``stage``: ``series 3 of 8, part 1 of 4``."""
    listener = _listener.get()
    if listener is None:
        yield
        return
    with progress_listener(lambda part: listener(f"{stage}, {part}")):
        yield


def report_stage(stage: str) -> None:
    """Reports the stage that begins now to the listener, if there is one."""
    if (listener := _listener.get()) is not None:
        listener(stage)


def report_each(items: Sequence[Item], noun: str) -> Iterator[Item]:
    """Yields the items, and reports ``noun 3 of 8`` before each, at most four times a second."""
    last_report = -_INTERVAL_S
    for number, item in enumerate(items, start=1):
        if len(items) > 1 and time.monotonic() - last_report >= _INTERVAL_S:
            last_report = time.monotonic()
            report_stage(f"{noun} {number} of {len(items)}")
        yield item
