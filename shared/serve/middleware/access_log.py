"""One line in the log for each answer, under an identifier that the answer carries too."""

from __future__ import annotations

import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.serve.access_line import log_line, usable_identifier
from shared.serve.metrics import Metrics

_HEADER = "X-Request-Id"


class AccessLog:
    """Logs time, method, path, status, milliseconds and identifier as JSON, and counts the latency in a histogram.

    The identifier is the one that the request brings in ``X-Request-Id``, where it is fit for a log, else a new one.
    ``key`` names the key of who asks, where one is wanted. The query, which may hold names, is left out. The
    milliseconds are those to the answer's last byte.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0
        headers = Headers(scope=scope)
        number, traceparent = usable_identifier(headers.get(_HEADER, "")), headers.get("traceparent", "")
        scope["state"] = {**scope.get("state", {}), "request_id": number}

        async def send_with_number(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[_HEADER] = number
            await send(message)

        try:
            await self._app(scope, receive, send_with_number)
        finally:
            took = time.monotonic() - began
            client = (scope.get("client") or ("",))[0]
            key = scope["state"].get("key")
            name = "" if key is None else key.name
            self._metrics.requested(_pattern(scope), scope["method"], status, took)
            log_line(number, client, scope["method"], scope["path"], status, took, traceparent, name)


def _pattern(scope: Scope) -> str:
    """The path with the names of its parameters for their values; "other" where no route answered."""
    if "route" not in scope:
        return "other"
    pattern: str = scope["path"]
    for name, value in scope.get("path_params", {}).items():
        pattern = pattern.replace(f"/{value}", f"/{{{name}}}", 1)
    return pattern
