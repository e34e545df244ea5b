"""Bodies that routes read whole are small, and soon there; files and tensors are read by their routes as they come."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.errors import InvalidInputError
from shared.serve.middleware.error_answers import json_error
from shared.serve.runtime.connection import drain_body

_READING = ("GET", "HEAD", "OPTIONS")
_PATHS = ("/api/models/", "/v2/repository/")
_REVIEW = re.compile(r"/api/[^/]+/cases/[^/]+/review\Z")
_MAX_BYTES, _MAX_REVIEW_BYTES, _LONGEST_S = 1 << 16, 1 << 20, 10.0


class SmallBodies:
    """Reads the body of what changes models, or of a review, and refuses one that is too large or comes too slowly.

    That is above 64 KiB, of a review above 1 MiB (413), or not there in ten seconds (408).

    The same holds for routes of an application's own that take JSON, whose paths ``own`` match, with ``most_bytes``
    and ``longest_s``. FastAPI would hold all of it, however large, before it is known who asks.
    """

    def __init__(self, app: ASGIApp, own: Sequence[re.Pattern[str]], most_bytes: int, longest_s: float) -> None:
        self._app, self._own, self._limits_of_own = app, own, (most_bytes, longest_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        limits = self._limits(scope)
        if limits is None:
            await self._app(scope, receive, send)
            return
        most_bytes, longest_s = limits
        request = Request(scope, receive)
        try:
            async with asyncio.timeout(longest_s):
                whole: Message | None = {"type": "http.request", "body": await _body(request, most_bytes)}
        except TimeoutError:
            sentence = f"the request was not there after {longest_s:g} seconds; send it again"
            await json_error(scope["path"], sentence, 408)(scope, receive, send)
            return
        except InvalidInputError as refusal:
            await drain_body(request)
            await json_error(scope["path"], str(refusal), refusal.status)(scope, receive, send)
            return

        async def receive_again() -> Message:
            nonlocal whole
            message, whole = whole, None
            return await receive() if message is None else message

        await self._app(scope, receive_again, send)

    def _limits(self, scope: Scope) -> tuple[int, float] | None:
        if scope["type"] != "http" or scope["method"] in _READING:
            return None
        if scope["method"] == "POST" and scope["path"].startswith(_PATHS):
            return _MAX_BYTES, _LONGEST_S
        if scope["method"] == "PUT" and _REVIEW.match(scope["path"]):
            return _MAX_REVIEW_BYTES, _LONGEST_S
        return self._limits_of_own if any(path.match(scope["path"]) for path in self._own) else None


async def _body(request: Request, most_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most_bytes:
            most = f"{most_bytes} bytes" if most_bytes % 1024 else f"{most_bytes >> 10} KiB"
            raise InvalidInputError(f"the request is larger than the {most} that are taken here", status=413)
    return bytes(body)
