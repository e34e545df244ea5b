"""HTTP connections whose request headers are bounded in time and size; uvicorn bounds neither."""

from __future__ import annotations

import asyncio
import json
import socket
from http import HTTPStatus

from shared.serve.access_line import log_line, usable_identifier
from shared.serve.runtime.large_bodies import LargeBodyProtocol

MAX_HEADER_BYTES = 1 << 16
REST_S, REST_BYTES = 30.0, 100_000
"""So much must come in so many seconds of a body that was answered before it was there; of a chunked one, all."""


def with_header_deadline(seconds: float, idle: dict[int, socket.socket] | None = None) -> type[LargeBodyProtocol]:
    """uvicorn's protocol, which closes a connection that has not sent a request's whole header in so many seconds.

    They count from the connection's start, and after an answer from the first byte of the next request; until that
    comes uvicorn's ``timeout_keep_alive`` holds. A header of more than 64 KiB is refused (431). A connection that goes
    on to send a body without end after its answer is closed, too.

    ``idle`` are those of a ``Listener`` that have no request.
    """
    without_request: dict[int, socket.socket] = {} if idle is None else idle

    class HeaderDeadlineProtocol(LargeBodyProtocol):
        _header_timer: asyncio.TimerHandle | None = None
        _rest_timer: asyncio.TimerHandle | None = None
        _asking: socket.socket | None = None
        _header_bytes, _number = 0, -1
        _in_body = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._await_header()
            own = transport.get_extra_info("socket")
            self._number = -1 if own is None else own.fileno()

        def data_received(self, data: bytes) -> None:
            if not self._in_body:
                self._await_header()
                self._header_bytes += len(data)
            super().data_received(data)
            # What came along with the header's end is body.
            if not self._in_body and self._header_timer is not None and self._header_bytes > MAX_HEADER_BYTES:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the header is larger than 64 KiB")

        def send_400_response(self, msg: str) -> None:
            """Refuses what is no HTTP."""
            self._refuse(HTTPStatus.BAD_REQUEST, "this is no HTTP request")

        def _refuse(self, status: HTTPStatus, sentence: str) -> None:
            """Answers what never becomes a request as the others are answered, and closes the connection."""
            self._stop_timer()
            number, body = usable_identifier(""), json.dumps({"detail": sentence})
            head = {
                "content-type": "application/json",
                "content-length": str(len(body)),
                "connection": "close",
                "x-request-id": number,
            }
            lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in head.items())]
            self.transport.write("\r\n".join([*lines, "", body]).encode())
            self.transport.close()
            log_line(number, self.client[0] if self.client else "", "", "", status, 0.0)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            self._stop_rest_timer()
            without_request.pop(self._number, None)
            super().connection_lost(exc)

        def on_headers_complete(self) -> None:
            self._in_body, self._header_bytes = True, 0
            self._stop_timer()
            self._asking = without_request.pop(self._number, None)
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._in_body = False
            self._stop_rest_timer()
            super().on_message_complete()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._in_body:
                self._await_rest()
            elif self._asking is not None and not self.transport.is_closing():
                without_request[self._number] = self._asking

        def _await_rest(self) -> None:
            left = 0 if self._receiver is None else self._receiver.left
            self._stop_rest_timer()
            self._rest_timer = self.loop.call_later(REST_S, self._rest_is_late, left)

        def _rest_is_late(self, left: int) -> None:
            if self._receiver is None or left - self._receiver.left < REST_BYTES:
                self.transport.close()
            else:
                self._await_rest()

        def _stop_rest_timer(self) -> None:
            if self._rest_timer is not None:
                self._rest_timer.cancel()
                self._rest_timer = None

        def _await_header(self) -> None:
            if self._header_timer is None:
                self._header_timer = self.loop.call_later(seconds, self._header_is_late)

        def _stop_timer(self) -> None:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

        def _header_is_late(self) -> None:
            self._header_timer = None
            self.transport.close()

    return HeaderDeadlineProtocol
