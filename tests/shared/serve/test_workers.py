"""What is loaded once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from shared.errors import InvalidInputError
from shared.serve.runtime.workers import LoadOnce, Workers


@pytest.fixture
def workers() -> Iterator[Workers]:
    with closing(Workers("load", 4)) as found:
        yield found


def load_once(workers: Workers, load: Callable[[], Any], closed: list[Any] | None = None) -> LoadOnce[Any]:
    ended: list[Any] = [] if closed is None else closed
    return LoadOnce("it", workers, load=load, check=lambda: None, close=ended.append)


def test_who_asks_meanwhile_waits_for_the_same_loading(workers: Workers) -> None:
    loads: list[object] = []
    model = load_once(workers, lambda: loads.append(object()) or loads[-1])

    async def ask() -> list[Any]:
        return await asyncio.gather(*(model.get() for _ in range(8)))

    assert model.value is None
    found = asyncio.run(ask())
    assert len(loads) == 1 and all(one is loads[0] for one in found) and model.value is loads[0]


def test_a_refusal_is_503_is_remembered_and_is_tried_again(workers: Workers) -> None:
    faults: list[Exception] = [InvalidInputError("no weights"), ArithmeticError("inside")]

    def load() -> str:
        if faults:
            raise faults.pop(0)
        return "loaded"

    model = load_once(workers, load)
    with pytest.raises(InvalidInputError, match="no weights") as refused:
        asyncio.run(model.get())
    assert refused.value.status == 503 and model.failure == "no weights" and model.value is None
    with pytest.raises(ArithmeticError):
        model.load()
    assert model.failure == "ArithmeticError: inside"
    assert asyncio.run(model.get()) == "loaded" and model.failure is None


def test_what_is_closed_while_it_loads_is_closed_once_it_is_there(workers: Workers) -> None:
    entered, go = threading.Event(), threading.Event()

    def load() -> str:
        entered.set()
        assert go.wait(20)
        return "late"

    closed: list[Any] = []
    model = load_once(workers, load, closed)
    loading = threading.Thread(target=model.load)
    loading.start()
    assert entered.wait(20)
    model.close()
    assert closed == []
    go.set()
    loading.join(20)
    assert closed == ["late"]
