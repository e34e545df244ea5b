"""Decides which of many large uploads are read first. Used from the event loop only."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

_STALLED_S = 0.25


class Turn:
    """One upload of a group of keys.

    ``last_received`` is when its last bytes arrived (``time.monotonic``). While it waits for others, ``resume`` is the
    event that lets it continue.
    """

    def __init__(self, group: str | None = None) -> None:
        self.group = group
        self.last_received = time.monotonic()
        self.resume: asyncio.Event | None = None
        self.is_complete = False
        """Whether the whole body has arrived. The upload then counts until it leaves ``Turns.join``."""


class Turns:
    """Lets at most ``max_uploads`` uploads proceed at a time, the oldest of each group first.

    An upload counts while it is read and while it waits to be computed. If all uploads were read concurrently, all of
    them would complete at the same late time and hold memory until then. Besides, data that is read long before it is
    computed is no longer in the processor's caches. An upload that stalls for a moment does not block others.
    """

    def __init__(self, max_uploads: int) -> None:
        self.max_uploads = max_uploads
        self._uploads: dict[Turn, None] = {}
        self._finished_count, self._last_finished = 0, dict[str | None, int]()
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def join(self, group: str | None = None) -> Iterator[Turn]:
        """Registers an upload of a group of keys while the block lasts."""
        turn = Turn(group)
        self._uploads[turn] = None
        try:
            yield turn
        finally:
            del self._uploads[turn]
            self._finished_count += 1
            self._last_finished[turn.group] = self._finished_count
            self._resume_allowed()

    async def wait(self, turn: Turn) -> None:
        """Returns when the upload may continue. Call it just after some of its bytes have arrived."""
        turn.last_received = time.monotonic()
        if turn in self._allowed():
            return
        turn.resume = asyncio.Event()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_STALLED_S, self._check_stalled)
        await turn.resume.wait()

    def _allowed(self) -> list[Turn]:
        """The uploads that may proceed. Stalled ones are left out.

        The oldest upload of every group comes before the second of any group. Of uploads with the same place in their
        groups, that of the group whose last turn was the longest ago comes first.
        """
        now, ranked, rank_in_group = time.monotonic(), list[tuple[int, int, Turn]](), Counter[str | None]()
        for turn in self._uploads:
            if turn.is_complete or turn.resume is not None or now - turn.last_received < _STALLED_S:
                ranked.append((rank_in_group[turn.group], self._last_finished.get(turn.group, 0), turn))
                rank_in_group[turn.group] += 1
        ranked.sort(key=lambda entry: entry[:2])
        return [turn for *_, turn in ranked[: self.max_uploads]]

    def _resume_allowed(self) -> None:
        for turn in self._allowed():
            if turn.resume is not None:
                turn.resume.set()
                turn.resume, turn.last_received = None, time.monotonic()

    def _check_stalled(self) -> None:
        self._timer = None
        self._resume_allowed()
        if any(turn.resume is not None for turn in self._uploads):
            self._timer = asyncio.get_running_loop().call_later(_STALLED_S, self._check_stalled)
