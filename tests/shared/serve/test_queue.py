"""The queue and its batches."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from shared.serve.metrics import Metrics
from shared.serve.runtime.limits import Busy, DeadlinePassed
from shared.serve.runtime.queue import BatchQueue
from tests.shared.serve.echo import until


def batch_queue(compute: Any, **changes: Any) -> BatchQueue[Any, Any]:
    given = {"name": "it", "capacity": 100, "max_batch": 4, "max_delay_s": 0.05, "metrics": Metrics().of("it", "1")}
    return BatchQueue(compute, **(given | changes))


def soon() -> float:
    return time.monotonic() + 20


class Held:
    """Computes nothing until it is let go, and remembers its batches."""

    def __init__(self) -> None:
        self.go, self.entered, self.batches = threading.Event(), threading.Event(), []  # type: ignore[var-annotated]

    def __call__(self, batch: Sequence[int]) -> list[int]:
        self.entered.set()
        assert self.go.wait(20)
        self.batches.append(list(batch))
        return [-item for item in batch]


def test_what_waits_is_computed_in_batches_in_order() -> None:
    held = Held()
    queue = batch_queue(held, max_delay_s=0)
    first = queue.submit(0, soon())
    assert held.entered.wait(20)
    rest = [queue.submit(n, soon()) for n in range(1, 10)]
    held.go.set()
    assert [future.result(20) for future in [first, *rest]] == [-n for n in range(10)]
    assert held.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]]


def test_only_one_kind_is_in_a_batch_and_none_starves() -> None:
    held = Held()
    queue = batch_queue(held, max_delay_s=0, kind=lambda n: n % 2)
    futures = [queue.submit(0, soon())]
    assert held.entered.wait(20)
    futures += [queue.submit(n, soon()) for n in (1, 2, 3, 4)]
    held.go.set()
    assert [future.result(20) for future in futures] == [0, -1, -2, -3, -4]
    assert held.batches == [[0], [1, 3], [2, 4]]


def test_sizes_add_up_and_a_large_item_goes_alone() -> None:
    held = Held()
    queue = batch_queue(held, max_delay_s=0, size=lambda n: n)
    futures = [queue.submit(1, soon())]
    assert held.entered.wait(20)
    futures += [queue.submit(n, soon()) for n in (3, 9, 1, 2)]
    held.go.set()
    assert [future.result(20) for future in futures] == [-1, -3, -9, -1, -2]
    assert held.batches == [[1], [3, 1], [9], [2]]


def test_a_lone_item_waits_no_longer_than_the_delay() -> None:
    queue = batch_queue(lambda batch: batch, max_delay_s=0.05)
    began = time.monotonic()
    assert queue.submit(1, soon()).result(20) == 1
    assert 0.04 < time.monotonic() - began < 5


def test_a_full_batch_does_not_wait() -> None:
    queue = batch_queue(lambda batch: batch, max_delay_s=30, max_batch=3)
    futures = [queue.submit(n, soon()) for n in range(3)]
    assert [future.result(10) for future in futures] == [0, 1, 2]


def test_beyond_capacity_it_is_busy() -> None:
    held = Held()
    queue = batch_queue(held, capacity=2, max_batch=1, max_delay_s=0)
    queue.submit(0, soon())
    assert held.entered.wait(20)
    kept = [queue.submit(n, soon()) for n in (1, 2)]
    with pytest.raises(Busy) as refused:
        queue.submit(3, soon())
    assert refused.value.status == 503
    held.go.set()
    assert [future.result(20) for future in kept] == [-1, -2]


def test_what_is_late_is_not_computed_and_makes_room() -> None:
    held = Held()
    queue = batch_queue(held, capacity=1, max_batch=1, max_delay_s=0)
    first = queue.submit(0, soon())
    assert held.entered.wait(20)
    deadline = time.monotonic() + 0.05
    late = queue.submit(1, deadline)
    until(lambda: time.monotonic() > deadline)
    last = queue.submit(2, soon())
    with pytest.raises(DeadlinePassed) as passed:
        late.result(20)
    assert passed.value.status == 504
    held.go.set()
    assert (first.result(20), last.result(20)) == (0, -2)
    assert held.batches == [[0], [2]]


def test_an_error_reaches_only_the_item_that_caused_it() -> None:
    def compute(batch: Sequence[int]) -> list[float]:
        return [1 / n for n in batch]

    queue = batch_queue(compute, max_batch=3, max_delay_s=30)
    futures = [queue.submit(n, soon()) for n in (1, 0, 4)]
    assert (futures[0].result(20), futures[2].result(20)) == (1, 0.25)
    with pytest.raises(ZeroDivisionError):
        futures[1].result(20)


@pytest.mark.parametrize("fault", [SystemExit(3), StopIteration()])
def test_what_cannot_be_awaited_is_an_error_that_can(fault: BaseException) -> None:
    def compute(batch: Sequence[int]) -> list[int]:
        raise fault

    with pytest.raises(RuntimeError, match=type(fault).__name__):
        batch_queue(compute, max_delay_s=0).submit(1, soon()).result(20)


def test_what_nobody_waits_for_any_more_is_not_computed() -> None:
    held = Held()
    queue = batch_queue(held, max_batch=1, max_delay_s=0)
    first, given_up = queue.submit(0, soon()), None

    async def leave() -> None:
        nonlocal given_up
        given_up = asyncio.ensure_future(queue.answer(1, soon()))
        await asyncio.sleep(0)
        given_up.cancel()

    assert held.entered.wait(20)
    asyncio.run(leave())
    last = queue.submit(2, soon())
    held.go.set()
    assert (first.result(20), last.result(20)) == (0, -2) and held.batches == [[0], [2]]


def test_too_few_answers_are_an_error_not_a_mix_up() -> None:
    queue = batch_queue(lambda batch: [], max_delay_s=0)
    with pytest.raises(RuntimeError, match="0 answers to 1 inputs"):
        queue.submit(1, soon()).result(20)


def test_closing_refuses_what_waits_and_finishes_what_is_under_way() -> None:
    held = Held()
    queue = batch_queue(held, max_batch=1, max_delay_s=0)
    under_way = queue.submit(1, soon())
    assert held.entered.wait(20)
    waiting = queue.submit(2, soon())
    queue.close()
    with pytest.raises(Busy):
        waiting.result(20)
    with pytest.raises(Busy):
        queue.submit(3, soon())
    held.go.set()
    assert under_way.result(20) == -1
