"""Receives large request bodies from their connection directly into a buffer, without copies."""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
from contextlib import suppress

import httptools
from starlette.requests import Request
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MIN_LARGE_BODY = 1 << 16
"""Smaller bodies arrive together with their header."""
_EXTENSION = "trivium.rest_of_body"
_CHUNK_BYTES = 1 << 20


def receive_rest(request: Request, buffer: memoryview) -> BodyReceiver | None:
    """Has the rest of a request's body written to ``buffer``; the part that already arrived is copied there.

    ``buffer`` has the size of the whole body. Returns None if the server cannot do this (another protocol, a chunked
    body, or one that has arrived completely); the body is then read as usual.
    """
    rest: _RestOfBody | None = request.scope.get("extensions", {}).get(_EXTENSION)
    return None if rest is None else rest.take(buffer)


class BodyReceiver(asyncio.BufferedProtocol):
    """Replaces a connection's protocol until the rest of a body has arrived.

    The kernel writes received bytes directly to ``buffer``; if that is None, they are discarded. After each mebibyte,
    reading pauses until ``wait`` is called.
    """

    def __init__(self, protocol: LargeBodyProtocol, left: int, received: int, buffer: memoryview | None) -> None:
        self.left, self.disconnected = left, False
        self._protocol, self._buffer, self._offset, self._received = protocol, buffer, 0, received
        self._wake = asyncio.Event()

    async def wait(self) -> None:
        """Returns when about a mebibyte more or the rest has arrived, or when the client has disconnected."""
        self._protocol.flow.resume_reading()
        await self._wake.wait()
        self._wake.clear()

    def pop_received(self) -> int:
        """The number of bytes that arrived since the last call."""
        received, self._received = self._received, 0
        return received

    def drop(self) -> None:
        """Stops writing to the buffer, and discards the rest of the body."""
        self._buffer = None
        if self.left:
            self._protocol.flow.resume_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._buffer is None:
            self._discard()
            return _DISCARD_BUFFER[: self.left]
        return self._buffer[self._offset : self._offset + min(self.left, _CHUNK_BYTES)]

    def _discard(self) -> None:
        """Has the kernel discard the received bytes (tcp(7), MSG_TRUNC), except the body's last byte.

        That byte is read normally. While more than a mebibyte is left, SO_RCVLOWAT delays the next wake-up until a
        mebibyte has arrived.
        """
        connection = self._protocol.transport.get_extra_info("socket")
        if self.left < MIN_LARGE_BODY or connection is None or self._protocol.scheme != "http":
            return
        with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as duplicate:
            max_bytes = min(self.left - 1, len(_UNBACKED_MEMORY))
            self.left -= duplicate.recv_into(_UNBACKED_MEMORY, max_bytes, socket.MSG_TRUNC | socket.MSG_DONTWAIT)
            low_watermark = _CHUNK_BYTES if self.left > _CHUNK_BYTES else 1
            duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, low_watermark)

    def buffer_updated(self, nbytes: int) -> None:
        """Counts bytes that arrived in the memory of ``get_buffer``."""
        self._protocol.mark_active()
        self.left -= nbytes
        self._offset += nbytes
        self._received += nbytes
        if self._buffer is not None and (not self.left or self._received >= _CHUNK_BYTES):
            self._protocol.flow.pause_reading()
            self._wake.set()
        if not self.left:
            self._protocol.body_complete()

    def eof_received(self) -> None:
        """The client has finished sending: the connection closes."""

    def connection_lost(self, exc: Exception | None) -> None:
        self.disconnected = True
        self._wake.set()
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()


class LargeBodyProtocol(HttpToolsProtocol):
    """uvicorn's protocol, extended to receive large bodies into a buffer and to discard those of refused requests.

    uvicorn copies a body four times on its way to an application, and parses a refused body to its end.
    """

    _left = 0
    """Bytes of the current request's body that have not arrived; 0 or less if its size is not stated."""
    _rest: _RestOfBody | None = None
    _receiver: BodyReceiver | None = None

    def on_headers_complete(self) -> None:
        self._left = _stated_size(self.headers)
        self._rest = None
        if self._left >= MIN_LARGE_BODY:
            self._rest = _RestOfBody(self)
            self.scope["extensions"] = {_EXTENSION: self._rest}  # type: ignore[dict-item]
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._left -= len(body)
        super().on_body(body)

    def receive_rest(self, rest: _RestOfBody, buffer: memoryview) -> BodyReceiver | None:
        """The receiver for the rest of the current request's body; None if ``rest`` belongs to an earlier request."""
        cycle = self.cycle
        if rest is not self._rest or self._left <= 0 or cycle.disconnected or cycle.response_complete:
            return None
        if cycle.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            cycle.waiting_for_100_continue = False
        received = len(cycle.body)
        buffer[:received] = cycle.body
        cycle.body = bytearray()
        cycle.message_event.clear()
        return self._receive(received, buffer[received:])

    def _receive(self, received: int, buffer: memoryview | None) -> BodyReceiver:
        self._rest = None
        self._receiver = BodyReceiver(self, self._left, received, buffer)
        self.transport.set_protocol(self._receiver)
        self.flow.resume_reading()
        return self._receiver

    def mark_active(self) -> None:
        """Keeps the connection open: it is in use."""
        self._unset_keepalive_if_required()

    def body_complete(self) -> None:
        """Takes the connection back from the receiver, for the next request."""
        self._receiver, self._left = None, 0
        # A new parser, because the previous one still waits for the body that it did not see.
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.transport.set_protocol(self)
        if not self.cycle.response_complete:
            self.flow.resume_reading()
        self.on_message_complete()

    def on_response_complete(self) -> None:
        """Discards the rest of a body that was answered before it had arrived."""
        if self.cycle.response_complete and not self.transport.is_closing():
            if self._receiver is not None:
                self._receiver.drop()
            elif self._left >= MIN_LARGE_BODY:
                self._receive(0, None)
        super().on_response_complete()


class _RestOfBody:
    """Identifies the body of one request of a connection: it may be requested after the next request has begun."""

    def __init__(self, protocol: LargeBodyProtocol) -> None:
        self._protocol = protocol

    def take(self, buffer: memoryview) -> BodyReceiver | None:
        return self._protocol.receive_rest(self, buffer)


def _stated_size(headers: list[tuple[bytes, bytes]]) -> int:
    """The stated size of a body; 0 if it is chunked or absent. The parser refuses a request that states both."""
    sizes = [value for name, value in headers if name == b"content-length"]
    return int(sizes[0]) if len(sizes) == 1 and sizes[0].isdigit() else 0


_DISCARD_BUFFER = memoryview(bytearray(1 << 18))
_UNBACKED_MEMORY = mmap.mmap(-1, 1 << 28)
"""An address range for discarded bytes. It is never written to, so it takes no memory."""
