"""Receives the message of a gRPC call within time and rate limits, or gives it up for a call that needs its place."""

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
    """The single message of a call from the client at ``host`` and ``port``."""

    def __init__(self, requests: AsyncIterator[Any], host: str, port: int, settings: Settings) -> None:
        self._requests, self._address, self._settings = requests, (host, port), settings
        self._given_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._window_start, self._bytes_before = time.monotonic(), 0

    async def receive(self, place: Place) -> Any:
        """Receives the complete message.

        Raises ``InvalidInputError`` (408) if this takes too long, because the call occupies a place meanwhile, or if
        the connection, with all its calls, receives less than the minimum rate.
        """
        settings = self._settings
        seconds = min(settings.upload_s, settings.deadline_s)
        ends = time.monotonic() + seconds
        message = asyncio.ensure_future(anext(self._requests))
        place.upload = self
        try:
            while not message.done():
                window_s = max(0.0, min(connection.RATE_WINDOW_S, ends - time.monotonic()))
                waited = {message, self._given_up}
                await asyncio.wait(waited, timeout=window_s, return_when=asyncio.FIRST_COMPLETED)
                if self._given_up.done():
                    raise connection.stalled_request_error()
                if message.done():
                    break
                if time.monotonic() >= ends:
                    raise InvalidInputError(f"the message did not arrive within {seconds:g} seconds", status=408)
                if self._is_slower_than(settings.min_upload_rate * window_s):
                    raise connection.slow_upload_error(settings.min_upload_rate)
                self._window_start, self._bytes_before = time.monotonic(), received_bytes(*self._address) or 0
            return message.result()
        except StopAsyncIteration:
            raise InvalidInputError("the call has no message", status=400) from None
        finally:
            place.upload = None
            message.cancel()

    def give_up_if_stalled(self) -> bool:
        """Gives up this upload if it is stalled; returns whether it did.

        It is stalled if at least two seconds of the current window have passed and its rate is below the minimum.
        """
        window_s = time.monotonic() - self._window_start
        if window_s < connection.STALLED_S or not self._is_slower_than(self._settings.min_upload_rate * window_s):
            return False
        self._given_up.set_result(None)
        return True

    def _is_slower_than(self, size: float) -> bool:
        """Whether fewer than ``size`` bytes arrived since the window began; false if the number is unknown."""
        received = received_bytes(*self._address)
        return received is not None and received - self._bytes_before < size
