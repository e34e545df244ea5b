"""At most so many requests at a time from one client, so that one alone cannot take all the places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp, Receive, Scope, Send

from shared.errors import InvalidInputError
from shared.serve.middleware.error_answers import json_error
from shared.serve.runtime.limits import Busy

_READING = ("GET", "HEAD", "OPTIONS")
_RETRY_AFTER_S = 1


class TooMany(InvalidInputError):
    """A client has as many requests inside as it may (429)."""

    retry_after_s = _RETRY_AFTER_S


class ClientPlaces:
    """At most ``most`` requests of one address at a time, over HTTP and gRPC together; None is no limit.

    ``most_of_all`` is that of all addresses together, and ``most_of_group`` that of one group of keys.

    Behind a reverse proxy it is the address that its X-Forwarded-For states, where uvicorn trusts it
    (FORWARDED_ALLOW_IPS).
    """

    def __init__(self, most: int | None, most_of_all: int | None = None, most_of_group: int | None = None) -> None:
        self._most, self._most_of_all, self._most_of_group = most, most_of_all, most_of_group
        self._inside: Counter[str] = Counter()
        self._of_group: Counter[str | None] = Counter()

    @contextmanager
    def take(self, address: str, group: str | None = None) -> Iterator[None]:
        """Counts a request while the block lasts.

        Raises ``TooMany``, or ``Busy`` (503) where all, or those of the group of keys, have too many.
        """
        if self._most_of_group is not None and self._of_group[group] >= self._most_of_group:
            raise Busy("the server", f"as many requests of {_words(group)} as it can hold")
        if self._most_of_all is not None and self._inside.total() >= self._most_of_all:
            raise Busy("the server")
        if self._most is not None and self._inside[address] >= self._most:
            raise TooMany(
                f"{address} has {self._most} requests here already (TRIVIUM_MAX_PER_CLIENT); wait for an answer",
                status=429,
            )
        self._inside[address] += 1
        self._of_group[group] += 1
        try:
            yield
        finally:
            self._of_group[group] -= 1
            self._inside[address] -= 1
            if not self._inside[address]:
                del self._inside[address]


def _words(group: str | None) -> str:
    return "keys without a group" if group is None else f"the group {group}"


class PerClient:
    """Refuses (429, ``Retry-After``) what would begin work of an address that has its ``places`` taken."""

    def __init__(self, app: ASGIApp, places: ClientPlaces) -> None:
        self._app, self._places = app, places

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        client = scope.get("client")
        if client is None or scope["type"] != "http" or scope["method"] in _READING:
            await self._app(scope, receive, send)
            return
        try:
            with self._places.take(str(client[0])):
                await self._app(scope, receive, send)
        except TooMany as refused:
            refusal = json_error(scope["path"], str(refused), refused.status)
            refusal.headers["Retry-After"] = str(_RETRY_AFTER_S)
            await refusal(scope, receive, send)
