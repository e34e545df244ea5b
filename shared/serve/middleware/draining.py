"""The end of a server: what was accepted is answered, and nothing more is taken."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from shared.serve.middleware.error_answers import json_error

_READING = ("GET", "HEAD", "OPTIONS")
_RETRY_AFTER_S = 5


class Drain:
    """How many requests with a body are inside, and whether more are taken. Used from the event loop alone."""

    def __init__(self) -> None:
        self.begun = False
        """Set when the server is told to end."""
        self.inside = 0


class Draining:
    """Refuses (503, ``Retry-After``) what would begin work once the drain has begun; what only reads is answered."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app, self._drain = app, drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http" or scope["method"] in _READING:
            await self._app(scope, receive, send)
        elif self._drain.begun:
            refusal = json_error(scope["path"], "the server is being shut down; try again in a few seconds", 503)
            refusal.headers.update({"Retry-After": str(_RETRY_AFTER_S), "Connection": "close"})
            await refusal(scope, receive, send)
        else:
            self._drain.inside += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._drain.inside -= 1
