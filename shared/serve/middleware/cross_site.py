"""Pages of other sites cannot have a browser write here (cross-site request forgery)."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.serve.middleware.error_answers import json_error

_READING = ("GET", "HEAD", "OPTIONS")


class CrossSiteWrites:
    """Refuses (403) writes that a browser says come from a page of another site; programs say nothing of the kind."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] == "http" and scope["method"] not in _READING and _from_other_site(Headers(scope=scope)):
            sentence = "requests from other sites are not taken; behind a proxy, let it pass on the header Host"
            await json_error(scope["path"], sentence, 403)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _from_other_site(headers: Headers) -> bool:
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    host = headers.get("host", "").lower()
    return site in ("cross-site", "same-site") or (origin is not None and not _is_of(origin.lower(), host))


def _is_of(origin: str, host: str) -> bool:
    """Whether a page of ``origin`` is one of ``host``; either may leave out the port that its scheme has anyway."""
    try:
        page, here = urlsplit(origin), urlsplit(f"//{host}")
        usual = {"http": 80, "https": 443}.get(page.scheme)
        return page.hostname is not None and (page.hostname, page.port or usual) == (here.hostname, here.port or usual)
    except ValueError:
        return False
