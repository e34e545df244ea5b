"""Concurrent large uploads are read oldest first."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from shared.errors import InvalidInputError
from shared.serve.runtime import turns as module
from shared.serve.runtime.limits import Busy, RequestLimit
from shared.serve.runtime.turns import Turns
from tests.shared.serve.test_overload import Clock, answer, clock

__all__ = ["clock"]


async def upload(turns: Turns, name: str, chunks: Iterable[Any], log: list[str], of_group: str | None = None) -> None:
    """Reads chunks; None stands for a chunk that does not arrive."""
    with turns.join(of_group) as turn:
        for chunk in chunks:
            if chunk is None:
                await asyncio.sleep(60)
            log.append(name)
            await asyncio.sleep(0)
            await turns.wait(turn)
    log.append(f"{name} is read")


def test_the_oldest_uploads_are_read_first() -> None:
    async def read() -> list[str]:
        turns, log = Turns(2), list[str]()
        async with asyncio.TaskGroup() as group:
            for name in "abcde":
                group.create_task(upload(turns, name, range(5), log))
        return log

    history = asyncio.run(read())
    ends = [history.index(f"{name} is read") for name in "abcde"]
    assert ends == sorted(ends)
    assert set(history[5 : ends[0]]) <= {"a", "b"}, "only the first chunk is read before an upload's turn"


def test_the_uploads_of_groups_take_turns() -> None:
    async def read() -> list[str]:
        turns, log = Turns(1), list[str]()
        async with asyncio.TaskGroup() as group:
            for name in ("desk 1", "desk 2", "desk 3", "treasury 1"):
                group.create_task(upload(turns, name, range(5), log, name.split()[0]))
        return log

    history = asyncio.run(read())
    ends = [entry.removesuffix(" is read") for entry in history if entry.endswith("is read")]
    assert ends.index("treasury 1") < ends.index("desk 2") < ends.index("desk 3"), "not behind all uploads of the desk"


def test_a_complete_upload_counts_until_it_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STALLED_S", 0.0)

    async def read() -> list[str]:
        turns, log = Turns(1), list[str]()
        with turns.join() as first:
            first.is_complete = True
            other_upload = asyncio.create_task(upload(turns, "other", range(2), log))
            await asyncio.sleep(0.05)
            log.append("computed")
        await other_upload
        return log

    assert asyncio.run(read()) == ["other", "computed", "other", "other is read"]


def test_a_stalled_upload_does_not_block_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STALLED_S", 0.05)

    async def read() -> list[str]:
        turns, log = Turns(1), list[str]()
        stalled = asyncio.create_task(upload(turns, "stalled", [0, None], log))
        await asyncio.sleep(0)
        async with asyncio.timeout(20):
            await asyncio.gather(*(upload(turns, name, range(3), log) for name in "ab"))
        stalled.cancel()
        return log

    history = asyncio.run(read())
    assert history[-1] == "b is read" and "a is read" in history and "stalled is read" not in history


def test_an_upload_cancelled_while_waiting_is_removed() -> None:
    async def read() -> list[str]:
        turns, log = Turns(1), list[str]()
        first = asyncio.create_task(upload(turns, "first", [0, 1], log))
        waiting = asyncio.create_task(upload(turns, "waiting", range(9), log))
        while "waiting" not in log:
            await asyncio.sleep(0)
        waiting.cancel()
        async with asyncio.timeout(20):
            await asyncio.gather(first, upload(turns, "last", range(3), log))
        return log

    history = asyncio.run(read())
    assert history[-1] == "last is read" and "waiting is read" not in history


def test_uploads_that_wait_their_turn_count_as_ahead_of_new_requests(clock: Clock) -> None:
    limit = RequestLimit("it", 100, deadline_s=11)
    answer(limit, clock, 4, 2)
    with limit.admit():
        clock.now += 60  # a slow upload may be overtaken
        limit.check()
        with limit.held_back(), limit.held_back(), limit.held_back(), limit.held_back(), limit.held_back():
            with pytest.raises(Busy) as raised:
                limit.check()
            assert isinstance(raised.value, InvalidInputError) and raised.value.status == 503
        limit.check()
