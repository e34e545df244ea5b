"""Requests for which there is no room are refused before anything is spent on them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.serve.known_keys import group_of
from shared.serve.middleware.error_answers import json_error
from shared.serve.runtime.connection import drain_body, stays_open
from shared.serve.runtime.limits import Busy

_LONGEST_PAUSE_S, _PAUSE_SHARE = 2.0, 0.2
_MAX_PAUSED, _LARGE = 1000, 999_999
_SPREAD = (0.7, 1.3)


class EarlyRefusal:
    """Answers 503 with ``Retry-After`` where the check of the path raises ``Busy``, before routing and without a body.

    ``checks`` by path, which are given the group of the key that asks. A client that closes its connection with the
    answer is answered first and read to its end then. One that keeps it, as it may to ask again at once, is answered
    after about two seconds (a fifth of the deadline): a client that waits costs nothing, and those that ask in a loop
    would take the time that answers need. One with a large body, which takes time to drop, waits twice as long. At most
    ``_MAX_PAUSED`` wait so, each for a time of its own, lest all ask again at the same moment.
    """

    def __init__(self, app: ASGIApp, checks: Mapping[str, Callable[[str | None], None]], deadline_s: float) -> None:
        self._app, self._checks = app, checks
        self._pause_s, self._paused = min(_LONGEST_PAUSE_S, _PAUSE_SHARE * deadline_s), 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        check = self._checks.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        try:
            if check is not None:
                check(group_of(scope))
        except Busy as busy:
            if self._paused < _MAX_PAUSED and stays_open(Request(scope)):
                self._paused += 1
                try:
                    await asyncio.sleep(self._pause_s * random.uniform(*_SPREAD) * (2 if _is_large(scope) else 1))
                finally:
                    self._paused -= 1
            answer = json_error(scope["path"], str(busy), busy.status)
            answer.headers["Retry-After"] = str(busy.retry_after_s)
            await send({"type": "http.response.start", "status": answer.status_code, "headers": answer.raw_headers})
            await send({"type": "http.response.body", "body": answer.body, "more_body": True})
            await drain_body(Request(scope, receive))
            await send({"type": "http.response.body", "body": b""})
            return
        await self._app(scope, receive, send)


def _is_large(scope: Scope) -> bool:
    stated = Headers(scope=scope).get("content-length", "")
    return stated.isdecimal() and len(stated) > len(str(_LARGE))
