"""A request's connection: its body while it comes, its client while it waits, and what is left of it when refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from shared.errors import InvalidInputError

Result = TypeVar("Result")
_DRAIN_S = 10.0


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Awaits the work; where the client goes away first, cancels it and raises ``ClientDisconnect``.

    The request's body must have been read.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.wait({working, leaving})


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def with_idle_timeout(body: AsyncIterator[bytes], seconds: float) -> AsyncIterator[bytes]:
    """The chunks of a request body; refuses (408) where nothing comes for so many seconds."""
    while True:
        try:
            async with asyncio.timeout(seconds):
                chunk = await anext(body)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise InvalidInputError(
                f"nothing more of the request came for {seconds:g} seconds; send it again", status=408
            ) from None
        yield chunk


async def drain_body(request: Request) -> None:
    """Reads and drops what is left of the body of a request that is refused, for a while.

    Where the connection closes with the answer, a client that still sends would see it break instead of the answer.
    On one that stays open the server drops the rest by itself.
    """
    stays = request.scope.get("http_version") != "1.0" and request.headers.get("connection", "").lower() != "close"
    if stays or request.method in ("GET", "HEAD"):
        return
    with suppress(TimeoutError, ClientDisconnect, RuntimeError):  # the last: it has been read whole
        async with asyncio.timeout(_DRAIN_S):
            async for _ in request.stream():
                pass
