"""Security headers on every answer: OWASP's recommended ones, and a content security policy."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

FILE_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:"
"""The policy for files of a case that a browser may open, such as an HTML report: no scripts, no active content."""

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


def page_policy(nonce: str | None = None) -> str:
    """The content security policy of a page. The viewers need WebAssembly, and workers and images from memory."""
    own = f"'self' 'nonce-{nonce}'" if nonce else "'self'"
    return (
        f"default-src 'self'; script-src {own} 'wasm-unsafe-eval' blob:; worker-src 'self' blob:; "
        "img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; connect-src 'self' data: blob:; "
        "font-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )


def _encoded_headers(cache_control: str) -> list[tuple[bytes, bytes]]:
    headers = _HEADERS | {"Content-Security-Policy": page_policy(), "Cache-Control": cache_control}
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


_STATIC_FILE_HEADERS, _OTHER_HEADERS = _encoded_headers("no-cache"), _encoded_headers("no-store")


class SecurityHeaders:
    """Adds the headers that an answer does not already have. Only static files may be cached."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers: list[tuple[bytes, bytes]] = list(message.get("headers", ()))
                present = {name.lower() for name, _ in headers}
                added = _STATIC_FILE_HEADERS if scope["path"].startswith("/static/") else _OTHER_HEADERS
                headers += [header for header in added if header[0] not in present]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_with_headers)
