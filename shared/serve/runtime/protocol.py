"""HTTP connections whose request headers must come in time; uvicorn bounds neither a new nor a half-sent header."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def with_header_deadline(seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol, which closes a connection that has not sent a request's whole header in so many seconds.

    They count from the connection's start, and after an answer from the first byte of the next request; until that
    comes uvicorn's ``timeout_keep_alive`` holds.
    """

    class HeaderDeadlineProtocol(H11Protocol):
        _header_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch_header()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch_header()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def _watch_header(self) -> None:
            if self.conn.their_state is not h11.IDLE:
                self._stop_timer()
            elif self._header_timer is None:
                self._header_timer = self.loop.call_later(seconds, self._header_is_late)

        def _stop_timer(self) -> None:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

        def _header_is_late(self) -> None:
            self._header_timer = None
            if self.conn.their_state is h11.IDLE:
                self.transport.close()

    return HeaderDeadlineProtocol
