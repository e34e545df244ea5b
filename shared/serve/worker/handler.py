"""The handler that a worker runs, in a process or a thread: requests in, replies out. A reply may report an error."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Sequence
from typing import Protocol

from shared.errors import DISK_FULL, InvalidInputError
from shared.serve.worker.messages import Message

log = logging.getLogger("trivium.serve")
Stage = Callable[[str], None]


class Handler(Protocol):
    """Computes requests, at most ``max_requests`` at once. Calls never overlap, but may come from any thread."""

    max_requests: int

    def handle(self, requests: Sequence[Message], stage: Stage) -> list[Message]:
        """A reply to each request, in order. ``stage`` is called with the name of each processing stage."""
        ...


class WorkerFault(RuntimeError):
    """A request that a worker failed to compute. The log has the cause, under the number in the message."""


class OutOfMemory(InvalidInputError):
    """A request that needs more memory than a worker may have (413)."""

    def __init__(self) -> None:
        super().__init__(
            "the request needs more memory than a worker may use; send less at once, or raise "
            "TRIVIUM_WORKER_MEMORY_BYTES",
            status=413,
        )


class OutOfSpace(InvalidInputError):
    """A request whose unpacked or generated files do not fit on a disk (507)."""

    def __init__(self) -> None:
        super().__init__(
            "there is not enough disk space for the request's files: free some on the disk of the store, and on that "
            "of temporary files (TMPDIR)",
            status=507,
        )


def refusal_reply(error: InvalidInputError) -> Message:
    """The reply to a request that is refused."""
    return Message({"refused": str(error), "status": error.status})


def failure_reply(error: BaseException, title: str, withhold: bool) -> Message:
    """The reply to a request that failed with ``error``. Unexpected errors are logged under a number.

    If the cause is a lack of memory or disk space, the reply is a refusal. ``withhold`` leaves the error's message out
    of the log, because it may contain names of persons.
    """
    if isinstance(error, InvalidInputError):
        return refusal_reply(error)
    if is_out_of_memory(error):
        return Message({**refusal_reply(OutOfMemory()).head, "ending": True})
    if is_out_of_space(error):
        return refusal_reply(OutOfSpace())
    number = secrets.token_hex(4)
    logged_error = error
    if withhold:
        message = f"{type(error).__name__}; its message is withheld because it may name a person"
        logged_error = RuntimeError(message).with_traceback(error.__traceback__)
    log.error("error %s in %s", number, title, exc_info=logged_error)
    return Message({"fault": f"{type(error).__name__}", "number": number})


def checked_reply(reply: Message, title: str) -> Message:
    """The reply, if it has a result. Raises ``InvalidInputError`` for a refusal and ``WorkerFault`` for a failure."""
    if "refused" in reply.head:
        raise InvalidInputError(str(reply.head["refused"]), status=int(reply.head["status"]))
    if "fault" in reply.head:
        raise WorkerFault(f"{title}: {reply.head['fault']} (error {reply.head['number']})")
    return reply


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; some libraries only say so in the message."""
    message_text = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, Exception)
        and any(words in message_text for words in ("not enough memory", "bad_alloc", "bad alloc"))
    )


def is_out_of_space(error: BaseException) -> bool:
    """Whether a disk was full; polars only says so in the message."""
    return isinstance(error, OSError) and (
        error.errno in DISK_FULL or any(os.strerror(number) in str(error) for number in DISK_FULL)
    )
