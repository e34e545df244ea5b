"""The requests and the workers of a pool, with their states."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from shared.errors import InvalidInputError
from shared.serve.runtime.worker import Worker
from shared.serve.runtime.worker_errors import WorkerNotLoaded
from shared.serve.worker.messages import Message

State = Literal["loading", "idle", "busy", "failed"]


@dataclass(slots=True, eq=False)
class Entry:
    """A request that is waiting or being computed. Times are those of ``time.monotonic``."""

    request: Message
    deadline: float
    finish_s: float
    arrived: float
    answer: asyncio.Future[Message]
    stage: Callable[[str], None] | None
    group: str | None
    attempts: int = 0
    slot: Slot | None = None
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True, eq=False)
class Slot:
    """A worker with its current batch, and the history of its replacements."""

    worker: Worker
    state: State = "loading"
    batch: list[Entry] = field(default_factory=list)
    began: float = 0.0
    retryable: bool = False
    """Whether its batch may be computed again: it did not reach the worker, or another request of it was too late."""
    warm: bool = False
    """Whether its worker has answered since it was loaded."""
    restarts: int = 0
    failure: str | None = None
    refused: bool = False
    """Whether its worker reported the failure itself, so that a new one would fail as well."""
    failed_at: float = 0.0

    def load_error(self, retry_after_s: int) -> InvalidInputError:
        """The error of requests that no worker can compute, because this one could not be loaded (503)."""
        failure = str(self.failure)
        return InvalidInputError(failure, status=503) if self.refused else WorkerNotLoaded(failure, retry_after_s)
