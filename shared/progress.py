"""How far a long computation is: said by what computes, heard by whoever listens around it, else by nobody."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")
_EVERY_S = 0.25
_listener: ContextVar[Callable[[str], None] | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Callable[[str], None]) -> Iterator[None]:
    """``listener`` is told each stage that is reported inside, in a few words: ``tiles 12 of 80``."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def within(stage: str) -> Iterator[None]:
    """What is reported inside is a part of ``stage``, and told with it: ``series 3 of 8, part 1 of 4``."""
    listener = _listener.get()
    if listener is None:
        yield
        return
    with listening(lambda part: listener(f"{stage}, {part}")):
        yield


def report_stage(stage: str) -> None:
    """Says what is begun now."""
    if (listener := _listener.get()) is not None:
        listener(stage)


def report_each(items: Sequence[Item], what: str) -> Iterator[Item]:
    """The items, saying ``what 3 of 8`` before each; where they go by fast, four times a second."""
    told = -_EVERY_S
    for number, item in enumerate(items, start=1):
        if len(items) > 1 and time.monotonic() - told >= _EVERY_S:
            told = time.monotonic()
            report_stage(f"{what} {number} of {len(items)}")
        yield item
