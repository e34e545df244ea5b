"""The access log over HTTP: one line for each answer, with an identifier that the answer also has."""

from __future__ import annotations

import time

from fastapi.routing import APIRoute
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.serve.access_line import log_access, request_identifier
from shared.serve.metrics import Metrics

_HEADER = "X-Request-Id"


class AccessLog:
    """Logs time, method, path, status, milliseconds and identifier as JSON, and records the latency in a histogram.

    The identifier is the request's ``X-Request-Id`` if it is safe to log, else a new one. ``key`` is the name of the
    caller's key, if it has one. The query is left out, because it may contain names of persons. The milliseconds run
    until the last byte of the answer.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0
        headers = Headers(scope=scope)
        identifier, traceparent = request_identifier(headers.get(_HEADER, "")), headers.get("traceparent", "")
        scope["state"] = {**scope.get("state", {}), "request_id": identifier}

        async def send_with_identifier(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[_HEADER] = identifier
            await send(message)

        try:
            await self._app(scope, receive, send_with_identifier)
        finally:
            duration_s = time.monotonic() - began
            client = (scope.get("client") or ("",))[0]
            key = scope["state"].get("key")
            key_name = "" if key is None else key.name
            self._metrics.observe_http_request(_route_pattern(scope), scope["method"], status, duration_s)
            log_access(identifier, client, scope["method"], scope["path"], status, duration_s, traceparent, key_name)


def _route_pattern(scope: Scope) -> str:
    """The path with the names of its parameters in place of their values; "other" if no route answered."""
    route = scope.get("route")
    if not isinstance(route, APIRoute):
        return "other"
    # The route's own pattern lacks the prefixes of the routers that include it.
    prefixes = scope["path"].split("/")[: -route.path_format.count("/")]
    return "/".join(prefixes) + route.path_format
