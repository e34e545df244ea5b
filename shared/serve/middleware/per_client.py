"""Limits the concurrent requests of one client, so that it cannot take all the places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp, Receive, Scope, Send

from shared.errors import InvalidInputError
from shared.serve.middleware.error_answers import json_error
from shared.serve.runtime.limits import Busy

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_RETRY_AFTER_S = 1


class TooMany(InvalidInputError):
    """A client has its maximum number of concurrent requests (429)."""

    retry_after_s = _RETRY_AFTER_S


class ClientLimit:
    """Limits the concurrent requests of one address to ``max_requests``, over HTTP and gRPC together; None is no limit.

    ``max_total`` limits those of all addresses together, and ``max_of_group`` those of one group of keys.

    Behind a reverse proxy the address is the one in X-Forwarded-For, if uvicorn trusts the proxy
    (FORWARDED_ALLOW_IPS).
    """

    def __init__(self, max_requests: int | None, max_total: int | None = None, max_of_group: int | None = None) -> None:
        self._max_requests, self._max_total, self._max_of_group = max_requests, max_total, max_of_group
        self._open: Counter[str] = Counter()
        self._open_by_group: Counter[str | None] = Counter()

    @contextmanager
    def take(self, address: str, group: str | None = None) -> Iterator[None]:
        """Counts a request while the block lasts.

        Raises ``TooMany`` (429) at the limit of the address, and ``Busy`` (503) at the limit of all or of the group.
        """
        if self._max_of_group is not None and self._open_by_group[group] >= self._max_of_group:
            raise Busy("the server", f"as many requests of {_group_text(group)} as it can hold")
        if self._max_total is not None and self._open.total() >= self._max_total:
            raise Busy("the server")
        if self._max_requests is not None and self._open[address] >= self._max_requests:
            raise TooMany(
                f"{address} already has {self._max_requests} open requests (TRIVIUM_MAX_PER_CLIENT); "
                "wait for an answer",
                status=429,
            )
        self._open[address] += 1
        self._open_by_group[group] += 1
        try:
            yield
        finally:
            self._open_by_group[group] -= 1
            self._open[address] -= 1
            if not self._open[address]:
                del self._open[address]


def _group_text(group: str | None) -> str:
    return "keys without a group" if group is None else f"the group {group}"


class PerClient:
    """Refuses (429, ``Retry-After``) new work of an address that is at its limit; answers requests that only read."""

    def __init__(self, app: ASGIApp, limit: ClientLimit) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        if client is None or scope["type"] != "http" or scope["method"] in _SAFE_METHODS:
            await self._app(scope, receive, send)
            return
        try:
            with self._limit.take(str(client[0])):
                await self._app(scope, receive, send)
        except TooMany as refusal:
            answer = json_error(scope["path"], str(refusal), refusal.status)
            answer.headers["Retry-After"] = str(_RETRY_AFTER_S)
            await answer(scope, receive, send)
