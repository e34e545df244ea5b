"""At most so many requests at a time from one client, so that one alone cannot take all the places."""

from __future__ import annotations

from collections import Counter

from starlette.types import ASGIApp, Receive, Scope, Send

from shared.serve.middleware.error_answers import json_error

_READING = ("GET", "HEAD", "OPTIONS")
_RETRY_AFTER_S = 1


class PerClient:
    """Refuses (429, ``Retry-After``) what would begin work above ``most`` of one address; None is no limit.

    Behind a reverse proxy all come from its address: there the limit is the proxy's matter.
    """

    def __init__(self, app: ASGIApp, most: int | None) -> None:
        self._app, self._most = app, most
        self._inside: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        client = scope.get("client")
        if self._most is None or client is None or scope["type"] != "http" or scope["method"] in _READING:
            await self._app(scope, receive, send)
            return
        address = str(client[0])
        if self._inside[address] >= self._most:
            sentence = f"{address} has {self._most} requests here already (TRIVIUM_MAX_PER_CLIENT); wait for an answer"
            refusal = json_error(scope["path"], sentence, 429)
            refusal.headers["Retry-After"] = str(_RETRY_AFTER_S)
            await refusal(scope, receive, send)
            return
        self._inside[address] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._inside[address] -= 1
            if not self._inside[address]:
                del self._inside[address]
