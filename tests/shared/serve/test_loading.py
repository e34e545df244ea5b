"""Lazy loading of a shared value."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from shared.errors import InvalidInputError
from shared.serve.runtime.loading import LoadOnce


def load_once(load: Callable[[], Awaitable[Any]], closed: list[Any] | None = None) -> LoadOnce[Any]:
    ended: list[Any] = [] if closed is None else closed
    return LoadOnce("it", load=load, check=lambda: None, close=ended.append, usable=lambda value: value != "broken")


def test_concurrent_callers_wait_for_the_same_load() -> None:
    loads: list[object] = []

    async def load() -> object:
        await asyncio.sleep(0)
        loads.append(object())
        return loads[-1]

    async def ask() -> None:
        model = load_once(load)
        assert model.value is None and not model.usable
        leaving = asyncio.ensure_future(model.get())
        await asyncio.sleep(0)
        leaving.cancel()
        found = await asyncio.gather(*(model.get() for _ in range(8)))
        assert (
            len(loads) == 1 and all(value is loads[0] for value in found) and model.value is loads[0] and model.usable
        )

    asyncio.run(ask())


def test_a_failed_load_is_503_is_remembered_and_is_retried() -> None:
    faults: list[Exception] = [InvalidInputError("no weights"), ArithmeticError("inside")]

    async def load() -> str:
        if faults:
            raise faults.pop(0)
        return "broken"

    async def ask() -> None:
        model = load_once(load)
        with pytest.raises(InvalidInputError, match="no weights") as raised:
            await model.get()
        assert raised.value.status == 503 and model.failure == "no weights" and model.value is None
        with pytest.raises(ArithmeticError):
            await model.get()
        assert model.failure == "ArithmeticError: inside"
        assert await model.get() == "broken" and model.failure is None and not model.usable

    asyncio.run(ask())


def test_closing_cancels_a_load_and_closes_a_loaded_value() -> None:
    closed: list[Any] = []

    async def slow() -> str:
        await asyncio.sleep(20)
        return "late"

    async def at_once() -> str:
        return "there"

    async def ask() -> None:
        model = load_once(slow, closed)
        waiting = asyncio.ensure_future(model.get())
        await asyncio.sleep(0)
        model.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        loaded = load_once(at_once, closed)
        await loaded.get()
        loaded.close()

    asyncio.run(ask())
    assert closed == ["there"]
