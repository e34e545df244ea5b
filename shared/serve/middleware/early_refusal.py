"""Refuses requests for which there is no room before any work is done for them."""

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

_MAX_PAUSE_S, _PAUSE_SHARE_OF_DEADLINE = 2.0, 0.2
_MAX_PAUSED, _LARGE_BYTES = 1000, 999_999
_JITTER = (0.7, 1.3)


class EarlyRefusal:
    """Answers 503 with ``Retry-After`` if the check of the path raises ``Busy``, before routing and reading the body.

    ``checks`` has the checks by path; each is called with the group of the caller's key. If the client closes the
    connection with the answer, the answer is sent at once and the body is drained afterwards. If it keeps the
    connection open, the answer is delayed by about two seconds (at most a fifth of the deadline): a waiting client
    costs nothing, whereas clients that retry in a loop would take time from the answers. With a large body, which takes
    time to discard, the delay is twice as long. At most ``_MAX_PAUSED`` answers are delayed at a time, each with a
    random jitter, so that the clients do not all retry at the same moment.
    """

    def __init__(self, app: ASGIApp, checks: Mapping[str, Callable[[str | None], None]], deadline_s: float) -> None:
        self._app, self._checks = app, checks
        self._pause_s, self._paused = min(_MAX_PAUSE_S, _PAUSE_SHARE_OF_DEADLINE * deadline_s), 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        check = self._checks.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        try:
            if check is not None:
                check(group_of(scope))
        except Busy as busy:
            if self._paused < _MAX_PAUSED and stays_open(Request(scope)):
                self._paused += 1
                try:
                    await asyncio.sleep(self._pause_s * random.uniform(*_JITTER) * (2 if _is_large(scope) else 1))
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
    content_length = Headers(scope=scope).get("content-length", "")
    return content_length.isdecimal() and len(content_length) > len(str(_LARGE_BYTES))
