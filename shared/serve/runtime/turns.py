"""Which of many large uploads are read first. Used from the event loop alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

_STALLED_S = 0.25


class Turn:
    """One upload: when the last of it came, and what it waits for while others go first."""

    def __init__(self) -> None:
        self.came = time.monotonic()
        self.go: asyncio.Event | None = None
        self.whole = False
        """Whether all of it has come: then it counts until it leaves."""


class Turns:
    """Lets ``most`` uploads be inside at a time, read or waiting to be computed, the oldest first.

    Were all read side by side, all would be whole at the same late time, and take memory until then; and what is read
    long before it is computed has left the processor's caches. One of which nothing has come for a moment keeps nobody
    waiting.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._inside: dict[Turn, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def join(self) -> Iterator[Turn]:
        """An upload, while the block lasts."""
        turn = Turn()
        self._inside[turn] = None
        try:
            yield turn
        finally:
            del self._inside[turn]
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
        """The oldest that wait, or of which something came a moment ago."""
        now, found = time.monotonic(), []
        for turn in self._inside:
            if turn.whole or turn.go is not None or now - turn.came < _STALLED_S:
                found.append(turn)
                if len(found) == self.most:
                    break
        return found

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
