"""The line in the log for an answer, over whichever protocol it went."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time

from shared.utc_time import iso_utc

log = logging.getLogger("trivium.access")
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?\Z")
_USABLE = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}\Z")


def usable_identifier(given: str) -> str:
    """The identifier that a request brings, where it is fit for a log, else a new one."""
    return given if _USABLE.match(given) else secrets.token_hex(8)


def log_line(
    number: str,
    client: str,
    method: str,
    path: str,
    status: int,
    seconds: float,
    traceparent: str = "",
    key: str = "",
) -> None:
    """Logs an answer under its identifier; ``time`` is that of its end, ``key`` the name of who asks, where known.

    ``trace`` is the trace that the request says it is part of (W3C Trace Context, traceparent), where it says one.
    """
    if log.isEnabledFor(logging.INFO):
        now = iso_utc(time.time())
        line = {"time": now, "request": number, "client": client, "method": method, "path": path, "status": status}
        found = _TRACEPARENT.match(traceparent)
        trace = {} if found is None else {"trace": found[1]}
        asking = {"key": key} if key else {}
        log.info("%s", json.dumps({**line, "ms": round(1000 * seconds, 1), **trace, **asking}))
