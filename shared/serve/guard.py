"""What holds for every answer: own hosts, no foreign writes, security headers, and no error without a sentence."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import secrets
from collections.abc import Collection
from html import escape
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("trivium.serve")


def page_policy(nonce: str | None = None) -> str:
    """The content security policy of a page. The viewers need WebAssembly, and workers and pictures made in memory."""
    own = f"'self' 'nonce-{nonce}'" if nonce else "'self'"
    return (
        f"default-src 'self'; script-src {own} 'wasm-unsafe-eval' blob:; worker-src 'self' blob:; "
        "img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; connect-src 'self' data: blob:; "
        "font-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )


FILE_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:"
"""The policy of a case's file that a browser may open (an HTML report): nothing of it may act."""

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


def error_body(path: str, sentence: str) -> dict[str, str]:
    """An error in the words of the protocol that the path belongs to."""
    return {"error": sentence} if path == "/v2" or path.startswith("/v2/") else {"detail": sentence}


def own_hosts(address: str) -> frozenset[str] | None:
    """The names under which a server that listens on ``address`` is asked, as in ``Guard``.

    One on the loopback device is asked from this machine. Any other name is a page elsewhere that had its name lead
    here (DNS rebinding), to read what only this machine may.
    """
    try:
        loopback = address == "localhost" or ipaddress.ip_address(address).is_loopback
    except ValueError:
        loopback = False
    shown = f"[{address}]" if ":" in address else address
    return frozenset({"localhost", "127.0.0.1", "[::1]", shown}) if loopback else None


class Guard:
    """ASGI middleware around everything. Answers under the names in ``hosts``, with any port where it has none.

    None is any name.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Content-Security-Policy", page_policy())
                headers.setdefault("Cache-Control", "no-cache" if path.startswith("/static/") else "no-store")
            await send(message)

        if (refused := self._refused(scope["method"], Headers(scope=scope))) is not None:
            answer: Response = JSONResponse(error_body(path, refused[1]), refused[0])
            await answer(scope, receive, send_with_headers)
            return
        try:
            await self._app(scope, receive, send_with_headers)
        except asyncio.CancelledError:
            # The server is shutting down, and what was left to it is over.
            if not started:
                answer = JSONResponse(error_body(path, "the server is being shut down"), 503)
                await answer(scope, receive, send_with_headers)
        except ClientDisconnect:
            log.info("%s %s was broken off by its client", scope["method"], path)
        except Exception:
            number = secrets.token_hex(4)
            log.exception("error %s in %s %s", number, scope["method"], path)
            if started:
                raise
            sentence = f"Something went wrong in the server (error {number}). Its log holds the details."
            if wants_page(scope):
                answer = HTMLResponse(f"<!doctype html><title>Error</title><p>{escape(sentence)}", 500)
            else:
                answer = JSONResponse(error_body(path, sentence), 500)
            await answer(scope, receive, send_with_headers)

    def _refused(self, method: str, headers: Headers) -> tuple[int, str] | None:
        """Status and sentence for a request that is not taken."""
        host = headers.get("host", "").lower()
        if self._hosts is not None and not {host, host.rpartition(":")[0]} & set(self._hosts):
            return 421, f"this server is not {host!r}; if it is to be reached so, name that in TRIVIUM_HOSTS"
        if method in ("GET", "HEAD", "OPTIONS"):
            return None
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if site in ("cross-site", "same-site") or (origin is not None and not _is_of(origin.lower(), host)):
            return 403, "requests from other sites are not taken; behind a proxy, let it pass on the header Host"
        return None


def _is_of(origin: str, host: str) -> bool:
    """Whether a page of ``origin`` is one of ``host``; either may leave out the port that its scheme has anyway."""
    try:
        page, here = urlsplit(origin), urlsplit(f"//{host}")
        usual = {"http": 80, "https": 443}.get(page.scheme)
        return page.hostname is not None and (page.hostname, page.port or usual) == (here.hostname, here.port or usual)
    except ValueError:
        return False


def wants_page(scope: Scope) -> bool:
    """Whether a person's browser asks, for a page rather than for data."""
    path: str = scope["path"]
    data = path.startswith(("/api/", "/v2/", "/static/")) or path in ("/v2", "/metrics", "/healthz", "/openapi.json")
    return not data and "text/html" in Headers(scope=scope).get("accept", "")
