"""What a pool needs of a worker, and what a worker tells its pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from shared.serve.worker.messages import Message


class Listener(Protocol):
    """Who is told what becomes of a worker."""

    def is_ready(self, worker: Worker) -> None:
        """It has loaded."""
        ...

    def has_stage(self, worker: Worker, stage: str) -> None:
        """What it does now with what it was given."""
        ...

    def has_replied(self, worker: Worker, replies: Sequence[Message]) -> None:
        """It computed what it was given."""
        ...

    def has_ended(self, worker: Worker, why: str, *, refused: bool) -> None:
        """It is gone. ``refused`` where it said itself why it cannot compute, so that another would not either."""
        ...


class Worker(Protocol):
    """What computes: a process, or a thread of the server."""

    most: int
    load_s: float
    programs: dict[str, str]

    def start(self, listener: Listener) -> None:
        """Begins to load, also again after it ended."""
        ...

    def begin(self, batch: Sequence[Message]) -> bool:
        """Gives it requests, at most ``most``; only when it is ready and has replied to what it was given before.

        False where it is gone already, of which the listener is told besides.
        """
        ...

    def stop(self) -> bool:
        """Stops what it computes by ending it, and says whether that can be done."""
        ...

    def close(self) -> None:
        """Ends it for good, and tells nobody."""
        ...

    def describe(self) -> dict[str, int | None]:
        """What an operator is told of it: ``pid`` and ``memory_bytes``, None where they are the server's."""
        ...
