"""Reference cycles do not pile up in a server, although its garbage collector runs rarely."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest
import uvicorn

from shared.serve import server
from shared.serve.middleware.draining import Drain


@pytest.fixture
def _collector() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


class Cycle:
    """A reference cycle."""

    def __init__(self) -> None:
        self.itself = self


async def _nothing(*_: object) -> None:
    """An ASGI application that answers nothing."""


@pytest.mark.usefixtures("_collector")
def test_even_few_reference_cycles_are_freed_within_a_minute() -> None:
    started = server._Server(uvicorn.Config(_nothing), announce=lambda: None, drain=Drain(), drain_s=0)
    server.reduce_garbage_collection()
    left = weakref.ref(Cycle())
    seconds = 0
    while left() is not None and seconds < 120:
        seconds += 1
        for tick in range(10):
            assert not asyncio.run(started.on_tick(10 * seconds + tick))
    assert seconds <= 60
