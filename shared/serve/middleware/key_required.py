"""Requires a key for every request except health probes."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.errors import InvalidInputError
from shared.secure.access import API_KEY_HEADER
from shared.serve.known_keys import KnownKeys
from shared.serve.middleware.error_answers import error_answer
from shared.serve.runtime.connection import drain_body

PROBES = ("/healthz", "/v2/health/live", "/v2/health/ready")
_SAFE_METHODS = ("GET", "HEAD")
# The Basic challenge makes a browser ask for a name and a password, and send them with everything a page fetches.
_CHALLENGES = ('Bearer realm="Trivium"', 'Basic realm="Trivium", charset="UTF-8"')
_RETRY_AFTER_S = 5


class KeyRequired:
    """Refuses (401) requests without a valid key, and passes the key to the routes as ``request.state.key``."""

    def __init__(self, app: ASGIApp, keys: KnownKeys) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        has_credentials = "authorization" in headers or API_KEY_HEADER in headers
        is_probe = scope["path"] in PROBES and scope["method"] in _SAFE_METHODS
        try:
            if has_credentials or not is_probe:
                scope["state"]["key"] = await self._keys.find(headers)
        except InvalidInputError as refusal:
            if not is_probe:
                await drain_body(Request(scope, receive))
                await _refusal_answer(scope, refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _refusal_answer(scope: Scope, refusal: InvalidInputError) -> Response:
    answer = error_answer(scope, str(refusal), refusal.status)
    if refusal.status == 401:
        for challenge in _CHALLENGES:
            answer.headers.append("WWW-Authenticate", challenge)
    else:
        answer.headers["Retry-After"] = str(_RETRY_AFTER_S)
    return answer
