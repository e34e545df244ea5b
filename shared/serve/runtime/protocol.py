"""The HTTP protocol with limits on the time and size of request headers, which uvicorn does not have."""

from __future__ import annotations

import asyncio
import json
import socket
from http import HTTPStatus

from shared.serve.access_line import log_access, request_identifier
from shared.serve.runtime.large_bodies import LargeBodyProtocol

MAX_HEADER_BYTES = 1 << 16
UNREAD_BODY_PERIOD_S, UNREAD_BODY_MIN_BYTES = 30.0, 100_000
"""Minimum progress, in each period, of a body that was answered before it had arrived; a chunked one must end in it."""


def header_deadline_protocol(seconds: float, idle: dict[int, socket.socket] | None = None) -> type[LargeBodyProtocol]:
    """uvicorn's protocol, extended to close a connection that has not sent a complete request header in ``seconds``.

    The time runs from the start of the connection, and after an answer from the first byte of the next request; until
    that arrives, uvicorn's ``timeout_keep_alive`` applies. A header above 64 KiB is refused (431). A connection is
    also closed if it keeps sending a body after its answer with less than the minimum progress.

    ``idle`` is the mapping of a ``Listener`` with its connections that have no request.
    """
    idle_connections: dict[int, socket.socket] = {} if idle is None else idle

    class HeaderDeadlineProtocol(LargeBodyProtocol):
        _header_timer: asyncio.TimerHandle | None = None
        _body_timer: asyncio.TimerHandle | None = None
        _active_socket: socket.socket | None = None
        _header_bytes, _descriptor = 0, -1
        _in_body = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._start_header_timer()
            connection = transport.get_extra_info("socket")
            self._descriptor = -1 if connection is None else connection.fileno()

        def data_received(self, data: bytes) -> None:
            if not self._in_body:
                self._start_header_timer()
                self._header_bytes += len(data)
            super().data_received(data)
            # Bytes after the end of the header belong to the body.
            if not self._in_body and self._header_timer is not None and self._header_bytes > MAX_HEADER_BYTES:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the header is larger than 64 KiB")

        def send_400_response(self, msg: str) -> None:
            """Refuses data that is not HTTP."""
            self._refuse(HTTPStatus.BAD_REQUEST, "this is not an HTTP request")

        def _refuse(self, status: HTTPStatus, sentence: str) -> None:
            """Answers an invalid request in the same format as other errors, logs it, and closes the connection."""
            self._stop_header_timer()
            identifier, body = request_identifier(""), json.dumps({"detail": sentence})
            headers = {
                "content-type": "application/json",
                "content-length": str(len(body)),
                "connection": "close",
                "x-request-id": identifier,
            }
            lines = [
                f"HTTP/1.1 {status.value} {status.phrase}",
                *(f"{name}: {value}" for name, value in headers.items()),
            ]
            self.transport.write("\r\n".join([*lines, "", body]).encode())
            self.transport.close()
            log_access(identifier, self.client[0] if self.client else "", "", "", status, 0.0)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_header_timer()
            self._stop_body_timer()
            idle_connections.pop(self._descriptor, None)
            super().connection_lost(exc)

        def on_headers_complete(self) -> None:
            self._in_body, self._header_bytes = True, 0
            self._stop_header_timer()
            self._active_socket = idle_connections.pop(self._descriptor, None)
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._in_body = False
            self._stop_body_timer()
            super().on_message_complete()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._in_body:
                self._start_body_timer()
            elif self._active_socket is not None and not self.transport.is_closing():
                idle_connections[self._descriptor] = self._active_socket

        def _start_body_timer(self) -> None:
            bytes_left = 0 if self._receiver is None else self._receiver.left
            self._stop_body_timer()
            self._body_timer = self.loop.call_later(UNREAD_BODY_PERIOD_S, self._check_body_progress, bytes_left)

        def _check_body_progress(self, bytes_left: int) -> None:
            if self._receiver is None or bytes_left - self._receiver.left < UNREAD_BODY_MIN_BYTES:
                self.transport.close()
            else:
                self._start_body_timer()

        def _stop_body_timer(self) -> None:
            if self._body_timer is not None:
                self._body_timer.cancel()
                self._body_timer = None

        def _start_header_timer(self) -> None:
            if self._header_timer is None:
                self._header_timer = self.loop.call_later(seconds, self._close_for_late_header)

        def _stop_header_timer(self) -> None:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

        def _close_for_late_header(self) -> None:
            self._header_timer = None
            self.transport.close()

    return HeaderDeadlineProtocol
