"""The protocols between a pool and its workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from shared.serve.worker.messages import Message


class WorkerListener(Protocol):
    """Receives the events of a worker."""

    def on_ready(self, worker: Worker) -> None:
        """The worker has loaded."""
        ...

    def on_stage(self, worker: Worker, stage: str) -> None:
        """The worker has reached a stage of loading, or of computing its batch."""
        ...

    def on_replies(self, worker: Worker, replies: Sequence[Message]) -> None:
        """The worker has computed its batch; there is a reply for each request, in order."""
        ...

    def on_end(self, worker: Worker, reason: str, *, refused: bool) -> None:
        """The worker has ended. ``refused``: it reported why it cannot compute, so a replacement would fail as well."""
        ...


class Worker(Protocol):
    """Computes requests, in a process or in a thread of the server.

    ``max_requests`` is how many requests it takes at once, ``load_s`` how long it took to load, and ``programs`` which
    program computes each network, and why.
    """

    max_requests: int
    load_s: float
    programs: dict[str, str]

    def start(self, listener: WorkerListener) -> None:
        """Starts loading. May be called again after the worker has ended."""
        ...

    def begin(self, batch: Sequence[Message]) -> bool:
        """Starts computing at most ``max_requests`` requests.

        The worker must be ready, and have replied to earlier requests. Returns False if it has already ended; the
        listener is also notified of that.
        """
        ...

    def stop(self) -> bool:
        """Stops computing by ending the worker; returns whether it can be ended."""
        ...

    def close(self) -> None:
        """Ends the worker for good, without notifying the listener."""
        ...

    def describe(self) -> dict[str, int | None]:
        """``pid`` and ``memory_bytes`` of its process, for operators; None if it runs in the server's process."""
        ...
