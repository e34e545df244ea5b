"""What holds for every answer: security headers, no foreign writes, and no error without a sentence."""

from __future__ import annotations

import logging
import secrets
from html import escape

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


class Guard:
    """ASGI middleware around everything."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

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

        if scope["method"] not in ("GET", "HEAD") and Headers(scope=scope).get("sec-fetch-site") == "cross-site":
            answer: Response = JSONResponse(error_body(path, "requests from other sites are not taken"), 403)
            await answer(scope, receive, send_with_headers)
            return
        try:
            await self._app(scope, receive, send_with_headers)
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


def wants_page(scope: Scope) -> bool:
    """Whether a person's browser asks, for a page rather than for data."""
    path: str = scope["path"]
    data = path.startswith(("/api/", "/v2/", "/static/")) or path in ("/v2", "/metrics", "/healthz", "/openapi.json")
    return not data and "text/html" in Headers(scope=scope).get("accept", "")
