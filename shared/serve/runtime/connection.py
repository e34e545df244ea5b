"""A request's connection: its body while it comes, its client while it waits, and what is left of it when refused."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from shared.errors import InvalidInputError
from shared.serve.runtime.large_bodies import take_rest
from shared.serve.runtime.places import Place
from shared.serve.settings import Settings

Result = TypeVar("Result")
_DRAIN_S = 10.0
RATE_WINDOW_S = 10.0
STALLED_S = 2.0
_WATCH_AFTER_S = 0.25
_LOOK_EVERY_S = 1.0
_NOTHING_YET: Message = {"type": "http.request", "more_body": True}
_WHOLE = "trivium.body_is_read"
"""Where a request's scope says that its body was read to the end."""


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Awaits the work; where the client goes away first, cancels it and raises ``ClientDisconnect``.

    The request's body must have been read.
    """
    task, left = asyncio.current_task(), False
    watching: asyncio.Future[None] | None = None
    assert task is not None

    def leave(_: asyncio.Future[None]) -> None:
        nonlocal left
        left = True
        task.cancel()

    def watch() -> None:
        nonlocal watching
        watching = asyncio.ensure_future(_disconnected(request))
        watching.add_done_callback(leave)

    # The work stays in this task, and another watches only where it takes a while: two tasks for each request, and
    # waiting for both, took a fifth of a small request's time here.
    timer = asyncio.get_running_loop().call_later(_WATCH_AFTER_S, watch)
    try:
        return await work
    except asyncio.CancelledError:
        if left and not task.uncancel():
            raise ClientDisconnect from None
        raise
    finally:
        timer.cancel()
        if watching is not None:
            watching.remove_done_callback(leave)
            watching.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def within_upload_limits(request: Request, settings: Settings, place: Place) -> AsyncIterator[bytes]:
    """The chunks of a request's body; refuses (408) one that stops, comes too slowly, or takes too long as a whole.

    Only the time that the server waits for the client counts. The rate is measured over ten seconds each, so that a
    client that sent much at once cannot trickle the rest; over two seconds where the ``place`` is wanted by others.
    Raises ``ClientDisconnect`` where the client goes away.
    """
    clock = _UploadClock(settings, place)
    while True:
        message = _NOTHING_YET
        with suppress(TimeoutError):
            async with clock.waiting():
                message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        clock.count(len(chunk))
        if chunk:
            yield chunk
        if not message.get("more_body", False):
            request.scope[_WHOLE] = True
            return


async def receive_into(request: Request, into: memoryview, settings: Settings, place: Place) -> AsyncGenerator[int]:
    """Writes a request's body of this size to memory: how many bytes came, again and again, within the same limits.

    Where the server can, they come there from the connection without a copy.
    """
    rest = take_rest(request, into)
    if rest is None:
        at = 0
        async for chunk in within_upload_limits(request, settings, place):
            into[at : at + len(chunk)] = chunk
            at += len(chunk)
            yield len(chunk)
        return
    clock = _UploadClock(settings, place)
    try:
        while True:
            with suppress(TimeoutError):
                async with clock.waiting(_LOOK_EVERY_S):
                    await rest.wait()
            if rest.disconnected:
                raise ClientDisconnect
            came = rest.taken()
            clock.count(came)
            if not rest.left:
                request.scope[_WHOLE] = True
            if came:
                yield came
            if not rest.left:
                return
    finally:
        rest.drop()


class _UploadClock:
    """How long a client may be waited for: since its last bytes, in the current window, and in all."""

    def __init__(self, settings: Settings, place: Place) -> None:
        self._settings, self._place = settings, place
        self._idle_s = self._whole_s = self._window_s = self._began = 0.0
        self._received = 0
        self._limit: asyncio.Timeout | None = None
        self._gave_way = False

    @asynccontextmanager
    async def waiting(self, most_s: float = math.inf) -> AsyncIterator[None]:
        """Waits for the client inside, until the next limit or for so many seconds; then raises ``TimeoutError``."""
        given = self._settings
        left = (given.deadline_s - self._idle_s, given.upload_s - self._whole_s, RATE_WINDOW_S - self._window_s)
        self._began, self._place.upload = time.monotonic(), self
        try:
            async with asyncio.timeout(max(0.0, min(*left, most_s))) as self._limit:
                yield
        finally:
            self._place.upload = None

    def give_way(self) -> bool:
        """Whether less than the least rate came in the current window, of which two seconds have passed at least."""
        window_s = self._window_s + time.monotonic() - self._began
        if window_s < STALLED_S or self._received >= self._settings.min_upload_rate * window_s:
            return False
        self._gave_way, self._place.upload = True, None
        assert self._limit is not None
        self._limit.reschedule(asyncio.get_running_loop().time())
        return True

    def count(self, size: int) -> None:
        """Counts what was waited and what came. Raises ``InvalidInputError`` (408) at a limit."""
        given, waited_s = self._settings, time.monotonic() - self._began
        self._idle_s = 0.0 if size else self._idle_s + waited_s
        self._whole_s += waited_s
        self._window_s += waited_s
        self._received += size
        if self._gave_way:
            raise stalled_request_error()
        if self._idle_s >= given.deadline_s:
            raise _too_slow(f"nothing more of the request came for {given.deadline_s:g} seconds")
        if self._whole_s >= given.upload_s:
            raise _too_slow(f"the request took longer than {given.upload_s:g} seconds to come (TRIVIUM_UPLOAD_S)")
        if self._window_s >= RATE_WINDOW_S:
            if self._received < given.min_upload_rate * self._window_s:
                raise too_slow_a_rate(given.min_upload_rate)
            self._window_s, self._received = 0.0, 0


def too_slow_a_rate(least: float) -> InvalidInputError:
    """The refusal (408) of what came at less than so many bytes a second."""
    return _too_slow(f"the request came more slowly than {least:g} bytes per second (TRIVIUM_MIN_UPLOAD_RATE)")


def stalled_request_error() -> InvalidInputError:
    """The refusal (408) of what stalled while another found no place."""
    return _too_slow("the request came slowly, and another needed its place")


def _too_slow(reason: str) -> InvalidInputError:
    return InvalidInputError(f"{reason}; send it again", status=408)


async def drain_body(request: Request) -> None:
    """Reads and drops what is left of the body of a request that is refused, for a while.

    Where the connection closes with the answer, a client that still sends would see it break instead of the answer.
    On one that stays open the server drops the rest by itself.
    """
    if stays_open(request) or request.method in ("GET", "HEAD") or _WHOLE in request.scope:
        return
    with suppress(TimeoutError, ClientDisconnect, RuntimeError):  # the last: what reads it so has read it whole
        async with asyncio.timeout(_DRAIN_S):
            async for _ in request.stream():
                pass


def stays_open(request: Request) -> bool:
    """Whether the connection is kept for another request."""
    return request.scope.get("http_version") != "1.0" and request.headers.get("connection", "").lower() != "close"
