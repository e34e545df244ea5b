"""Graceful shutdown: accepted requests are answered, and new ones are refused."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from shared.serve.middleware.error_answers import json_error

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_RETRY_AFTER_S = 5


class Drain:
    """Counts the running requests that do work, and says whether the server still accepts more.

    Used from the event loop only.
    """

    def __init__(self) -> None:
        self.is_draining = False
        """True once the server is shutting down."""
        self.running = 0


class Draining:
    """Refuses (503, ``Retry-After``) new work once the server is shutting down; answers requests that only read."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app, self._drain = app, drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in _SAFE_METHODS:
            await self._app(scope, receive, send)
        elif self._drain.is_draining:
            refusal = json_error(scope["path"], "the server is being shut down; try again in a few seconds", 503)
            refusal.headers.update({"Retry-After": str(_RETRY_AFTER_S), "Connection": "close"})
            await refusal(scope, receive, send)
        else:
            self._drain.running += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._drain.running -= 1
