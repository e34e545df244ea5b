"""Answers only requests for the server's own host names, which prevents DNS rebinding."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.serve.middleware.error_answers import json_error

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


def accepted_hosts(address: str) -> frozenset[str] | None:
    """The host names that a server listening on ``address`` accepts; None accepts any.

    A server on the loopback device is only reached from this machine. A request for any other host name then comes from
    a foreign page whose name was made to resolve to this machine (DNS rebinding), to read what only this machine may.
    """
    try:
        is_loopback = address == "localhost" or ipaddress.ip_address(address).is_loopback
    except ValueError:
        is_loopback = False
    host_name = f"[{address}]" if ":" in address else address
    return frozenset({*LOOPBACK_NAMES, host_name}) if is_loopback else None


class AcceptedHosts:
    """Refuses (421) requests whose ``Host`` is not in ``hosts``. A name without a port there allows any port."""

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._hosts is not None:
            host = Headers(scope=scope).get("host", "").lower()
            if not {host, host.rpartition(":")[0]} & set(self._hosts):
                sentence = f"this server does not accept the host name {host!r}; to allow it, add it to TRIVIUM_HOSTS"
                await json_error(scope["path"], sentence, 421)(scope, receive, send)
                return
        await self._app(scope, receive, send)
