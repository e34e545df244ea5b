"""Only those who have a key are answered; probes of the server's health are answered without."""

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
_READING = ("GET", "HEAD")
# A browser asks for a name and a password at the second, and sends them with all that a page fetches.
_CHALLENGES = ('Bearer realm="Trivium"', 'Basic realm="Trivium", charset="UTF-8"')
_RETRY_AFTER_S = 5


class KeyRequired:
    """Refuses (401) who has no key, and tells the routes whose it is: ``request.state.key``."""

    def __init__(self, app: ASGIApp, keys: KnownKeys) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = "authorization" in headers or API_KEY_HEADER in headers
        probe = scope["path"] in PROBES and scope["method"] in _READING
        try:
            if given or not probe:
                scope["state"]["key"] = await self._keys.find(headers)
        except InvalidInputError as refusal:
            if not probe:
                await drain_body(Request(scope, receive))
                await _refused(scope, refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _refused(scope: Scope, refusal: InvalidInputError) -> Response:
    answer = error_answer(scope, str(refusal), refusal.status)
    if refusal.status == 401:
        for challenge in _CHALLENGES:
            answer.headers.append("WWW-Authenticate", challenge)
    else:
        answer.headers["Retry-After"] = str(_RETRY_AFTER_S)
    return answer
