"""Bodies that routes read whole are small, and soon there; files and tensors are read by their routes as they come."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.errors import InvalidInputError
from shared.serve.middleware.error_answers import json_error
from shared.serve.runtime.connection import drain_body

_PATHS = ("/api/models/", "/v2/repository/")
_MOST_BYTES, _LONGEST_S = 1 << 16, 10.0


class SmallBodies:
    """Reads the body of what changes models, and refuses one above 64 KiB (413) or not there in ten seconds (408).

    FastAPI would hold all of it, however large, before it is known who asks.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].startswith(_PATHS):
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            async with asyncio.timeout(_LONGEST_S):
                whole: Message | None = {"type": "http.request", "body": await _body(request)}
        except TimeoutError:
            sentence = f"the request was not there after {_LONGEST_S:g} seconds; send it again"
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


async def _body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_BYTES:
            raise InvalidInputError("the request is larger than the 64 KiB that are taken here", status=413)
    return body
