"""Which of many large uploads are read first. Used from the event loop alone."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

_STALLED_S = 0.25


class Turn:
    """One upload of a group of keys: when the last of it came, and what it waits for while others go first."""

    def __init__(self, group: str | None = None) -> None:
        self.group = group
        self.came = time.monotonic()
        self.go: asyncio.Event | None = None
        self.whole = False
        """Whether all of it has come: then it counts until it leaves."""


class Turns:
    """Lets ``most`` uploads be inside at a time, read or waiting to be computed, the oldest of each group first.

    Were all read side by side, all would be whole at the same late time, and take memory until then; and what is read
    long before it is computed has left the processor's caches. One of which nothing has come for a moment keeps nobody
    waiting.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._inside: dict[Turn, None] = {}
        self._left, self._last_left = 0, dict[str | None, int]()
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def join(self, group: str | None = None) -> Iterator[Turn]:
        """An upload of a group of keys, while the block lasts."""
        turn = Turn(group)
        self._inside[turn] = None
        try:
            yield turn
        finally:
            del self._inside[turn]
            self._left += 1
            self._last_left[turn.group] = self._left
            self._advance()

    async def wait(self, turn: Turn) -> None:
        """Returns when it may be read on; something of it has come just now."""
        turn.came = time.monotonic()
        if turn in self._first():
            return
        turn.go = asyncio.Event()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_STALLED_S, self._look)
        await turn.go.wait()

    def _first(self) -> list[Turn]:
        """The oldest that wait, or of which something came a moment ago.

        The oldest of each group comes before the next of any, and first that of the group that had its turn earliest.
        """
        now, found, before = time.monotonic(), list[tuple[int, int, Turn]](), Counter[str | None]()
        for turn in self._inside:
            if turn.whole or turn.go is not None or now - turn.came < _STALLED_S:
                found.append((before[turn.group], self._last_left.get(turn.group, 0), turn))
                before[turn.group] += 1
        found.sort(key=lambda one: one[:2])
        return [turn for *_, turn in found[: self.most]]

    def _advance(self) -> None:
        for turn in self._first():
            if turn.go is not None:
                turn.go.set()
                turn.go, turn.came = None, time.monotonic()

    def _look(self) -> None:
        self._timer = None
        self._advance()
        if any(turn.go is not None for turn in self._inside):
            self._timer = asyncio.get_running_loop().call_later(_STALLED_S, self._look)
