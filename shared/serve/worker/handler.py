"""What computes in a worker, process or thread: requests in, replies out. A reply may be a refusal or a fault."""

from __future__ import annotations

import errno
import logging
import os
import secrets
from collections.abc import Callable, Sequence
from typing import Protocol

from shared.errors import InvalidInputError
from shared.serve.worker.messages import Message

log = logging.getLogger("trivium.serve")
Stage = Callable[[str], None]


class Handler(Protocol):
    """Computes requests, at most ``max_requests`` at once. Calls never overlap, but may come from any thread."""

    max_requests: int

    def handle(self, requests: Sequence[Message], stage: Stage) -> list[Message]:
        """A reply to each request, in their order. ``stage`` is told what is being done."""
        ...


class WorkerFault(RuntimeError):
    """A request that a worker could not compute; its log holds the cause under the number in the words."""


class OutOfMemory(InvalidInputError):
    """A request that needs more memory than a worker may have (413)."""

    def __init__(self) -> None:
        super().__init__(
            "the request needs more memory than one may use here; hand in less at once, or raise "
            "TRIVIUM_WORKER_MEMORY_BYTES",
            status=413,
        )


class OutOfSpace(InvalidInputError):
    """A request whose files, unpacked or made, find no space on a disk (507)."""

    def __init__(self) -> None:
        super().__init__(
            "the request's files need more space than there is: free some on the disk of the store, and on that of "
            "temporary files (TMPDIR)",
            status=507,
        )


def refusal(error: InvalidInputError) -> Message:
    """The reply to a request that is refused."""
    return Message({"refused": str(error), "status": error.status})


def fault(error: BaseException, what: str, withhold: bool) -> Message:
    """The reply to a request that failed, which is logged under a number. Names in its words may be those of persons.

    Where memory or a disk's space ran out that is a refusal.
    """
    if isinstance(error, InvalidInputError):
        return refusal(error)
    if is_out_of_memory(error):
        return Message({**refusal(OutOfMemory()).head, "ending": True})
    if is_out_of_space(error):
        return refusal(OutOfSpace())
    number = secrets.token_hex(4)
    shown = error
    if withhold:
        words = f"{type(error).__name__}; its words are withheld, for they may name a person"
        shown = RuntimeError(words).with_traceback(error.__traceback__)
    log.error("error %s in %s", number, what, exc_info=shown)
    return Message({"fault": f"{type(error).__name__}", "number": number})


def result(reply: Message, what: str) -> Message:
    """The reply where there is a result. Raises ``InvalidInputError`` or ``WorkerFault``."""
    if "refused" in reply.head:
        raise InvalidInputError(str(reply.head["refused"]), status=int(reply.head["status"]))
    if "fault" in reply.head:
        raise WorkerFault(f"{what}: {reply.head['fault']} (error {reply.head['number']})")
    return reply


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, in whichever words a library says so."""
    text = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, Exception) and any(words in text for words in ("not enough memory", "bad_alloc", "bad alloc"))
    )


def is_out_of_space(error: BaseException) -> bool:
    """Whether a disk had no space; polars says so in words alone."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, OSError) and (
        error.errno in full or any(os.strerror(number) in str(error) for number in full)
    )
