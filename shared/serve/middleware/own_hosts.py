"""Only requests under the server's own names are answered, which keeps DNS rebinding out."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.serve.middleware.error_answers import json_error

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


def own_hosts(address: str) -> frozenset[str] | None:
    """The names under which a server that listens on ``address`` is asked; None is any name.

    One on the loopback device is asked from this machine. Any other name is a page elsewhere that had its name lead
    here (DNS rebinding), to read what only this machine may.
    """
    try:
        loopback = address == "localhost" or ipaddress.ip_address(address).is_loopback
    except ValueError:
        loopback = False
    shown = f"[{address}]" if ":" in address else address
    return frozenset({*LOOPBACK_NAMES, shown}) if loopback else None


class OwnHosts:
    """Refuses (421) requests whose ``Host`` is not in ``hosts``, with any port where the name has none there."""

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] == "http" and self._hosts is not None:
            host = Headers(scope=scope).get("host", "").lower()
            if not {host, host.rpartition(":")[0]} & set(self._hosts):
                sentence = f"this server is not {host!r}; if it is to be reached so, name that in TRIVIUM_HOSTS"
                await json_error(scope["path"], sentence, 421)(scope, receive, send)
                return
        await self._app(scope, receive, send)
