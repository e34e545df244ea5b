"""The errors of requests whose worker has ended. Their answers carry ``Retry-After``, because it is replaced."""

from __future__ import annotations

from shared.errors import InvalidInputError
from shared.serve.runtime.limits import Busy


class WorkerLost(Busy):
    """The worker that was computing a request ended (503)."""

    def __init__(self, title: str, reason: str) -> None:
        InvalidInputError.__init__(
            self,
            f"the worker that was computing this for {title} ended ({reason}) and is replaced; try again",
            status=503,
        )
        self.retry_after_s = 5


class WorkerNotLoaded(Busy):
    """The worker for a request ended while it loaded its model, and no other one can compute (503)."""

    def __init__(self, failure: str, retry_after_s: int) -> None:
        InvalidInputError.__init__(
            self,
            f"{failure}; try again in {retry_after_s} seconds: a new one is then started. If this repeats, see the "
            "server's log; after SIGKILL, see whether the machine or container is out of memory, and give it more or "
            "lower TRIVIUM_WORKERS",
            status=503,
        )
        self.retry_after_s = retry_after_s
