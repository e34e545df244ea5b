"""Protects against cross-site request forgery: pages of other sites cannot make a browser write to this server."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.serve.middleware.error_answers import json_error

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class CrossSiteWrites:
    """Refuses (403) writes that a browser marks as coming from a page of another site.

    It relies on the headers Sec-Fetch-Site and Origin, which programs other than browsers do not send.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in _SAFE_METHODS and _is_cross_site(Headers(scope=scope)):
            sentence = "writes from pages of other sites are refused; behind a proxy, have it forward the Host header"
            await json_error(scope["path"], sentence, 403)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _is_cross_site(headers: Headers) -> bool:
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    host = headers.get("host", "").lower()
    return site in ("cross-site", "same-site") or (origin is not None and not _is_same_origin(origin.lower(), host))


def _is_same_origin(origin: str, host: str) -> bool:
    """Whether ``origin`` is the origin of ``host``; either may omit the default port of the scheme."""
    try:
        page, server = urlsplit(origin), urlsplit(f"//{host}")
        default_port = {"http": 80, "https": 443}.get(page.scheme)
        return page.hostname is not None and (
            (page.hostname, page.port or default_port) == (server.hostname, server.port or default_port)
        )
    except ValueError:
        return False
