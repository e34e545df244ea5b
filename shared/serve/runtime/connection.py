"""Reads request bodies within the upload limits, detects clients that disconnect, and drains refused bodies."""

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
from shared.serve.runtime.large_bodies import receive_rest
from shared.serve.runtime.places import Place
from shared.serve.settings import Settings

Result = TypeVar("Result")
_MAX_DRAIN_S = 10.0
RATE_WINDOW_S = 10.0
STALLED_S = 2.0
_DISCONNECT_WATCH_DELAY_S = 0.25
_CHECK_INTERVAL_S = 1.0
_EMPTY_MESSAGE: Message = {"type": "http.request", "more_body": True}
_BODY_READ = "trivium.body_is_read"
"""The key of a request's scope that is set once the body was read to the end."""


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Awaits the work. If the client disconnects first, cancels it and raises ``ClientDisconnect``.

    The request's body must have been read.
    """
    task, is_disconnected = asyncio.current_task(), False
    watcher: asyncio.Future[None] | None = None
    assert task is not None

    def cancel_work(_: asyncio.Future[None]) -> None:
        nonlocal is_disconnected
        is_disconnected = True
        task.cancel()

    def watch() -> None:
        nonlocal watcher
        watcher = asyncio.ensure_future(_wait_for_disconnect(request))
        watcher.add_done_callback(cancel_work)

    # The work runs in this task. A second task watches the client only if the work takes a while: two tasks for every
    # request, and waiting for both, took a fifth of a small request's time.
    timer = asyncio.get_running_loop().call_later(_DISCONNECT_WATCH_DELAY_S, watch)
    try:
        return await work
    except asyncio.CancelledError:
        if is_disconnected and not task.uncancel():
            raise ClientDisconnect from None
        raise
    finally:
        timer.cancel()
        if watcher is not None:
            watcher.remove_done_callback(cancel_work)
            watcher.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def receive_body(request: Request, settings: Settings, place: Place) -> AsyncIterator[bytes]:
    """Yields the chunks of a request's body.

    Raises ``InvalidInputError`` (408) if the body stalls, arrives too slowly, or takes too long in total, and
    ``ClientDisconnect`` if the client disconnects. Only the time that the server waits for the client counts. The rate
    is measured over windows of ten seconds, so that a client that sent much at once cannot trickle the rest; if another
    request needs the ``place``, two seconds are enough.
    """
    timer = _UploadTimer(settings, place)
    while True:
        message = _EMPTY_MESSAGE
        with suppress(TimeoutError):
            async with timer.waiting():
                message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        timer.count(len(chunk))
        if chunk:
            yield chunk
        if not message.get("more_body", False):
            request.scope[_BODY_READ] = True
            return


async def receive_body_into(
    request: Request, buffer: memoryview, settings: Settings, place: Place
) -> AsyncGenerator[int]:
    """Writes a request's body to ``buffer``, which has the body's size, and yields the number of bytes of each part.

    The limits and errors are those of ``receive_body``. If the server supports it, the bytes go from the
    connection to the buffer without a copy.
    """
    receiver = receive_rest(request, buffer)
    if receiver is None:
        offset = 0
        async for chunk in receive_body(request, settings, place):
            buffer[offset : offset + len(chunk)] = chunk
            offset += len(chunk)
            yield len(chunk)
        return
    timer = _UploadTimer(settings, place)
    try:
        while True:
            with suppress(TimeoutError):
                async with timer.waiting(_CHECK_INTERVAL_S):
                    await receiver.wait()
            if receiver.disconnected:
                raise ClientDisconnect
            received = receiver.pop_received()
            timer.count(received)
            if not receiver.left:
                request.scope[_BODY_READ] = True
            if received:
                yield received
            if not receiver.left:
                return
    finally:
        receiver.drop()


class _UploadTimer:
    """Measures how long the server waits for a client: since its last bytes, in the current window, and in total."""

    def __init__(self, settings: Settings, place: Place) -> None:
        self._settings, self._place = settings, place
        self._idle_s = self._total_s = self._window_s = self._began = 0.0
        self._received = 0
        self._limit: asyncio.Timeout | None = None
        self._is_given_up = False

    @asynccontextmanager
    async def waiting(self, max_s: float = math.inf) -> AsyncIterator[None]:
        """Bounds a block that waits for the client: raises ``TimeoutError`` at the next limit or after ``max_s``."""
        settings = self._settings
        remaining_s = (
            settings.deadline_s - self._idle_s,
            settings.upload_s - self._total_s,
            RATE_WINDOW_S - self._window_s,
        )
        self._began, self._place.upload = time.monotonic(), self
        try:
            async with asyncio.timeout(max(0.0, min(*remaining_s, max_s))) as self._limit:
                yield
        finally:
            self._place.upload = None

    def give_up_if_stalled(self) -> bool:
        """Gives the upload up if it is below the minimum rate in the current window; returns whether it did.

        The window must have lasted for at least two seconds.
        """
        window_s = self._window_s + time.monotonic() - self._began
        if window_s < STALLED_S or self._received >= self._settings.min_upload_rate * window_s:
            return False
        self._is_given_up, self._place.upload = True, None
        assert self._limit is not None
        self._limit.reschedule(asyncio.get_running_loop().time())
        return True

    def count(self, size: int) -> None:
        """Adds the time since ``waiting`` began and ``size`` received bytes.

        Raises ``InvalidInputError`` (408) if a limit is reached, or if the upload was given up.
        """
        settings, waited_s = self._settings, time.monotonic() - self._began
        self._idle_s = 0.0 if size else self._idle_s + waited_s
        self._total_s += waited_s
        self._window_s += waited_s
        self._received += size
        if self._is_given_up:
            raise stalled_request_error()
        if self._idle_s >= settings.deadline_s:
            raise _timeout_error(f"no more of the request arrived for {settings.deadline_s:g} seconds")
        if self._total_s >= settings.upload_s:
            raise _timeout_error(
                f"the request took longer than {settings.upload_s:g} seconds to arrive (TRIVIUM_UPLOAD_S)"
            )
        if self._window_s >= RATE_WINDOW_S:
            if self._received < settings.min_upload_rate * self._window_s:
                raise slow_upload_error(settings.min_upload_rate)
            self._window_s, self._received = 0.0, 0


def slow_upload_error(min_rate: float) -> InvalidInputError:
    """The error (408) for an upload below the minimum rate, in bytes per second."""
    return _timeout_error(f"the request arrived at less than {min_rate:g} bytes per second (TRIVIUM_MIN_UPLOAD_RATE)")


def stalled_request_error() -> InvalidInputError:
    """The error (408) for an upload that stalled while another request found no place."""
    return _timeout_error("the request arrived slowly while another request needed its place")


def _timeout_error(reason: str) -> InvalidInputError:
    return InvalidInputError(f"{reason}; send it again", status=408)


async def drain_body(request: Request) -> None:
    """Reads and discards the remaining body of a refused request, for at most ten seconds.

    If the connection closed with the answer, a client that is still sending would see a broken connection instead of
    the answer. On a connection that stays open the server discards the rest itself.
    """
    if stays_open(request) or request.method in ("GET", "HEAD") or _BODY_READ in request.scope:
        return
    with suppress(TimeoutError, ClientDisconnect, RuntimeError):  # RuntimeError: the stream was already read to its end
        async with asyncio.timeout(_MAX_DRAIN_S):
            async for _ in request.stream():
                pass


def stays_open(request: Request) -> bool:
    """Whether the connection is kept open for another request."""
    return request.scope.get("http_version") != "1.0" and request.headers.get("connection", "").lower() != "close"
