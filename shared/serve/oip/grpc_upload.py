"""The message of a call over gRPC while it comes: within the limits, or given up for a call that finds no place."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from shared.errors import InvalidInputError
from shared.serve.runtime import connection
from shared.serve.runtime.places import Place
from shared.serve.runtime.received_bytes import received_bytes
from shared.serve.settings import Settings


class Upload:
    """The one message of a call; ``host`` and ``port`` are its client's."""

    def __init__(self, requests: AsyncIterator[Any], host: str, port: int, settings: Settings) -> None:
        self._requests, self._address, self._settings = requests, (host, port), settings
        self._gave_way: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._since, self._before = time.monotonic(), 0

    async def whole(self, place: Place) -> Any:
        """The message; refuses (408) one that is not there in time: its call takes the place of another.

        So one whose connection brings less than the least rate. What other calls bring over it counts as well.
        """
        given = self._settings
        seconds = min(given.upload_s, given.deadline_s)
        ends = time.monotonic() + seconds
        message = asyncio.ensure_future(anext(self._requests))
        place.upload = self
        try:
            while not message.done():
                window_s = max(0.0, min(connection.RATE_WINDOW_S, ends - time.monotonic()))
                waited = {message, self._gave_way}
                await asyncio.wait(waited, timeout=window_s, return_when=asyncio.FIRST_COMPLETED)
                if self._gave_way.done():
                    raise connection.stalled_request_error()
                if message.done():
                    break
                if time.monotonic() >= ends:
                    raise InvalidInputError(f"the message did not come within {seconds:g} seconds", status=408)
                if self._is_slower_than(given.min_upload_rate * window_s):
                    raise connection.too_slow_a_rate(given.min_upload_rate)
                self._since, self._before = time.monotonic(), received_bytes(*self._address) or 0
            return message.result()
        except StopAsyncIteration:
            raise InvalidInputError("the call has no message", status=400) from None
        finally:
            place.upload = None
            message.cancel()

    def give_way(self) -> bool:
        """Whether less than the least rate came in the current window, of which two seconds have passed at least."""
        window_s = time.monotonic() - self._since
        if window_s < connection.STALLED_S or not self._is_slower_than(self._settings.min_upload_rate * window_s):
            return False
        self._gave_way.set_result(None)
        return True

    def _is_slower_than(self, size: float) -> bool:
        """Whether fewer bytes came since the window began, as far as can be told."""
        received = received_bytes(*self._address)
        return received is not None and received - self._before < size
