"""The access log: one line for each answer, over HTTP or gRPC."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time

from shared.utc_time import iso_utc

log = logging.getLogger("trivium.access")
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?\Z")
_SAFE_IDENTIFIER = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}\Z")


def request_identifier(identifier: str) -> str:
    """The identifier that a request was sent with if it is safe to log, else a new one."""
    return identifier if _SAFE_IDENTIFIER.match(identifier) else secrets.token_hex(8)


def log_access(
    identifier: str,
    client: str,
    method: str,
    path: str,
    status: int,
    seconds: float,
    traceparent: str = "",
    key: str = "",
) -> None:
    """Logs an answer as a line of JSON.

    ``time`` is when the answer ended, ``request`` the identifier, and ``key`` the name of the caller's key if it has
    one. ``trace`` is the trace id in the request's header traceparent (W3C Trace Context), if there is one.
    """
    if log.isEnabledFor(logging.INFO):
        now = iso_utc(time.time())
        line = {"time": now, "request": identifier, "client": client, "method": method, "path": path, "status": status}
        traceparent_match = _TRACEPARENT.match(traceparent)
        trace_field = {} if traceparent_match is None else {"trace": traceparent_match[1]}
        key_field = {"key": key} if key else {}
        log.info("%s", json.dumps({**line, "ms": round(1000 * seconds, 1), **trace_field, **key_field}))
