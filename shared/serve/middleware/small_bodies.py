"""Limits the size and time of bodies that routes read into memory; routes stream files and tensors themselves."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.errors import InvalidInputError
from shared.serve.middleware.error_answers import json_error
from shared.serve.runtime.connection import drain_body

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_PATH_PREFIXES = ("/api/models/", "/v2/repository/")
_REVIEW_PATH = re.compile(r"/api/[^/]+/cases/[^/]+/review\Z")
_MAX_BYTES, _MAX_REVIEW_BYTES, _TIMEOUT_S = 1 << 16, 1 << 20, 10.0


class SmallBodies:
    """Reads the bodies of model changes and reviews, and refuses those that are too large or too slow.

    The limits are 64 KiB, or 1 MiB for a review (413), and ten seconds (408).

    The applications' own routes that accept JSON, whose paths ``json_routes`` match, have the limits ``max_bytes`` and
    ``timeout_s``. Without these limits FastAPI would read a body of any size into memory before it checks the caller.
    """

    def __init__(self, app: ASGIApp, json_routes: Sequence[re.Pattern[str]], max_bytes: int, timeout_s: float) -> None:
        self._app, self._json_routes, self._json_limits = app, json_routes, (max_bytes, timeout_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limits = self._limits(scope)
        if limits is None:
            await self._app(scope, receive, send)
            return
        max_bytes, timeout_s = limits
        request = Request(scope, receive)
        try:
            async with asyncio.timeout(timeout_s):
                body_message: Message | None = {"type": "http.request", "body": await _read_body(request, max_bytes)}
        except TimeoutError:
            sentence = f"the request body did not arrive within {timeout_s:g} seconds; send it again"
            await json_error(scope["path"], sentence, 408)(scope, receive, send)
            return
        except InvalidInputError as refusal:
            await drain_body(request)
            await json_error(scope["path"], str(refusal), refusal.status)(scope, receive, send)
            return

        async def receive_again() -> Message:
            nonlocal body_message
            message, body_message = body_message, None
            return await receive() if message is None else message

        await self._app(scope, receive_again, send)

    def _limits(self, scope: Scope) -> tuple[int, float] | None:
        if scope["type"] != "http" or scope["method"] in _SAFE_METHODS:
            return None
        if scope["method"] == "POST" and scope["path"].startswith(_PATH_PREFIXES):
            return _MAX_BYTES, _TIMEOUT_S
        if scope["method"] == "PUT" and _REVIEW_PATH.match(scope["path"]):
            return _MAX_REVIEW_BYTES, _TIMEOUT_S
        return self._json_limits if any(path.match(scope["path"]) for path in self._json_routes) else None


async def _read_body(request: Request, max_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            limit = f"{max_bytes} bytes" if max_bytes % 1024 else f"{max_bytes >> 10} KiB"
            raise InvalidInputError(f"the request body is larger than the limit of {limit}; send less", status=413)
    return bytes(body)
