"""Large request bodies, which come from their connection straight into the memory where they are wanted."""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
from contextlib import suppress

import httptools
from starlette.requests import Request
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LEAST = 1 << 16
"""Smaller bodies come with their header, in one piece."""
_EXTENSION = "trivium.rest_of_body"
_PORTION = 1 << 20


def take_rest(request: Request, into: memoryview) -> BodyReceiver | None:
    """Has what is left of a request's body written into memory of its size; what came already is moved there.

    None where the server cannot (another protocol, a chunked body, one that is there as a whole): it is to be read then
    as any other.
    """
    rest: _Rest | None = request.scope.get("extensions", {}).get(_EXTENSION)
    return None if rest is None else rest.take(into)


class BodyReceiver(asyncio.BufferedProtocol):
    """Stands in for a connection's protocol until the rest of a body has come.

    The kernel writes into ``into`` what it has received, with no copy between; where that is None, what comes is
    dropped. After each mebibyte the connection is not read on before ``wait`` is called.
    """

    def __init__(self, protocol: LargeBodyProtocol, left: int, came: int, into: memoryview | None) -> None:
        self.left, self.disconnected = left, False
        self._protocol, self._into, self._at, self._came = protocol, into, 0, came
        self._wake = asyncio.Event()

    async def wait(self) -> None:
        """Returns when about a mebibyte more has come, all, or the client is gone."""
        self._protocol.flow.resume_reading()
        await self._wake.wait()
        self._wake.clear()

    def taken(self) -> int:
        """How many bytes have come since the last call."""
        came, self._came = self._came, 0
        return came

    def drop(self) -> None:
        """Writes nothing more into the memory that was given."""
        self._into = None
        if self.left:
            self._protocol.flow.resume_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where what comes next is written."""
        if self._into is None:
            self._discard()
            return _DROPPED[: self.left]
        return self._into[self._at : self._at + min(self.left, _PORTION)]

    def _discard(self) -> None:
        """Has the kernel drop what has come but for the body's last byte, which is read as ever (tcp(7), MSG_TRUNC).

        It is to say that something came when it is much, or all.
        """
        connection = self._protocol.transport.get_extra_info("socket")
        if self.left < LEAST or connection is None or self._protocol.scheme != "http":
            return
        with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as own:
            most = min(self.left - 1, len(_NOWHERE))
            self.left -= own.recv_into(_NOWHERE, most, socket.MSG_TRUNC | socket.MSG_DONTWAIT)
            much = _PORTION if self.left > _PORTION else 1
            own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, much)

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes came."""
        self._protocol.body_is_coming()
        self.left -= nbytes
        self._at += nbytes
        self._came += nbytes
        if self._into is not None and (not self.left or self._came >= _PORTION):
            self._protocol.flow.pause_reading()
            self._wake.set()
        if not self.left:
            self._protocol.body_is_whole()

    def eof_received(self) -> None:
        """The client sends nothing more: the connection closes."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self.disconnected = True
        self._wake.set()
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        """As the protocol for which it stands in."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """As the protocol for which it stands in."""
        self._protocol.resume_writing()


class LargeBodyProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which hands large bodies to those who ask for them, and drops those that nobody wants.

    uvicorn copies a body four times on its way to an application, and parses it to the end where it was refused.
    """

    _left = 0
    """How much of the current request's body has not come, where its size is stated and it is large."""
    _rest: _Rest | None = None
    _receiver: BodyReceiver | None = None

    def on_headers_complete(self) -> None:
        """A request begins."""
        self._left = _stated_size(self.headers)
        self._rest = None
        if self._left >= LEAST:
            self._rest = _Rest(self)
            self.scope["extensions"] = {_EXTENSION: self._rest}  # type: ignore[dict-item]
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Some of its body came."""
        self._left -= len(body)
        super().on_body(body)

    def take_rest(self, rest: _Rest, into: memoryview) -> BodyReceiver | None:
        """What receives the rest of the body of the request that is read now."""
        cycle = self.cycle
        if rest is not self._rest or self._left <= 0 or cycle.disconnected or cycle.response_complete:
            return None
        if cycle.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            cycle.waiting_for_100_continue = False
        came = len(cycle.body)
        into[:came] = cycle.body
        cycle.body = bytearray()
        cycle.message_event.clear()
        return self._receive(came, into[came:])

    def _receive(self, came: int, into: memoryview | None) -> BodyReceiver:
        self._rest = None
        self._receiver = BodyReceiver(self, self._left, came, into)
        self.transport.set_protocol(self._receiver)
        self.flow.resume_reading()
        return self._receiver

    def body_is_coming(self) -> None:
        """The connection is in use."""
        self._unset_keepalive_if_required()

    def body_is_whole(self) -> None:
        """Takes the connection back: the next request may come."""
        self._receiver, self._left = None, 0
        self.parser = httptools.HttpRequestParser(self)  # the one before waits for the body that it was not shown
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.transport.set_protocol(self)
        if not self.cycle.response_complete:
            self.flow.resume_reading()
        self.on_message_complete()

    def on_response_complete(self) -> None:
        """Drops what is left of a body that was answered before it was there."""
        if self.cycle.response_complete and not self.transport.is_closing():
            if self._receiver is not None:
                self._receiver.drop()
            elif self._left >= LEAST:
                self._receive(0, None)
        super().on_response_complete()


class _Rest:
    """The body of one request of a connection, which may be asked for after another has begun."""

    def __init__(self, protocol: LargeBodyProtocol) -> None:
        self._protocol = protocol

    def take(self, into: memoryview) -> BodyReceiver | None:
        return self._protocol.take_rest(self, into)


def _stated_size(headers: list[tuple[bytes, bytes]]) -> int:
    """The stated size of a body; 0 where it is chunked or there is none. The parser refuses what says both."""
    sizes = [value for name, value in headers if name == b"content-length"]
    return int(sizes[0]) if len(sizes) == 1 and sizes[0].isdigit() else 0


_DROPPED = memoryview(bytearray(1 << 18))
_NOWHERE = mmap.mmap(-1, 1 << 28)
"""Addresses that nothing is written to, which take no memory."""
