"""Error answers in the format of the requested path: JSON as its protocol defines it, or a page for a browser."""

from __future__ import annotations

from html import escape

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import Scope

_PAGE = (
    '<!doctype html><html lang="en"><meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta name="color-scheme" content="light dark"><title>The request failed · Trivium</title>'
    "<main><h1>The request failed</h1><p>{}</p></main></html>"
)


def error_answer(scope: Scope, sentence: str, status: int) -> Response:
    """The answer to a request that cannot be served. Needs no templates."""
    if wants_page(scope):
        return HTMLResponse(_PAGE.format(escape(sentence)), status)
    return json_error(scope["path"], sentence, status)


def json_error(path: str, sentence: str, status: int) -> JSONResponse:
    """``{"error": ...}`` for paths of the Open Inference Protocol, which requires it, else ``{"detail": ...}``."""
    is_oip = path == "/v2" or path.startswith("/v2/")
    return JSONResponse({"error" if is_oip else "detail": sentence}, status)


def wants_page(scope: Scope) -> bool:
    """Whether the request is a browser's for a page, not for data."""
    path: str = scope["path"]
    is_data = path.startswith(("/api/", "/v2/", "/static/")) or path in ("/v2", "/metrics", "/healthz", "/openapi.json")
    return not is_data and "text/html" in Headers(scope=scope).get("accept", "")
