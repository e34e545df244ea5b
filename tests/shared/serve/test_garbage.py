"""What refers to itself does not pile up in a server, whose collector is told to look rarely."""

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
    """Refers to itself."""

    def __init__(self) -> None:
        self.itself = self


async def _nothing(*_: object) -> None:
    """An application."""


@pytest.mark.usefixtures("_collector")
def test_cycles_are_freed_within_a_minute_however_few_they_are() -> None:
    started = server._Server(uvicorn.Config(_nothing), announce=lambda: None, drain=Drain(), drain_s=0)
    server.reduce_garbage_collection()
    left = weakref.ref(Cycle())
    seconds = 0
    while left() is not None and seconds < 120:
        seconds += 1
        for tick in range(10):
            assert not asyncio.run(started.on_tick(10 * seconds + tick))
    assert seconds <= 60
