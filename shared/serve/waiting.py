"""Waiting with an end: for an answer until its deadline, for it while somebody wants it, for a body while it comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from shared.errors import InvalidInputError

Result = TypeVar("Result")
_DISCARD_S = 10.0


class DeadlinePassed(InvalidInputError):
    """The answer was not there in time (504)."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} did not answer before the deadline; send less at once or raise it", status=504)


@asynccontextmanager
async def before(deadline: float, what: str) -> AsyncIterator[None]:
    """Cancels what is awaited inside at ``deadline`` (of ``time.monotonic``), and raises ``DeadlinePassed``."""
    try:
        async with asyncio.timeout(deadline - time.monotonic()) as limit:
            yield
    except TimeoutError:
        if limit.expired():
            raise DeadlinePassed(what) from None
        raise


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Awaits the work; where the client goes away first, cancels it and raises ``ClientDisconnect``.

    The request's body must have been read.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.wait({working, leaving})


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def patient(body: AsyncIterator[bytes], patience_s: float) -> AsyncIterator[bytes]:
    """The chunks of a request body; refuses (408) where nothing comes for so long."""
    while True:
        try:
            async with asyncio.timeout(patience_s):
                chunk = await anext(body)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise InvalidInputError(
                f"nothing more of the request came for {patience_s:g} seconds; send it again", status=408
            ) from None
        yield chunk


async def discard(request: Request) -> None:
    """Drops what is left of the body of a request that is refused, for a while.

    Where the connection closes with the answer, a client that still sends would see it break instead of the answer.
    On one that stays open the server drops the rest by itself.
    """
    stays = request.scope.get("http_version") != "1.0" and request.headers.get("connection", "").lower() != "close"
    if stays or request.method in ("GET", "HEAD"):
        return
    with suppress(TimeoutError, ClientDisconnect, RuntimeError):  # the last: it has been read whole
        async with asyncio.timeout(_DISCARD_S):
            async for _ in request.stream():
                pass
