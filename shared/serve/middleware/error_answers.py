"""Error answers in the format of the requested path: JSON as its protocol defines it, or a page for a browser."""

from __future__ import annotations

from html import escape

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import Scope


def error_answer(scope: Scope, sentence: str, status: int) -> Response:
    """The answer to a request that cannot be served. Needs no templates."""
    if wants_page(scope):
        return HTMLResponse(f"<!doctype html><title>Error</title><p>{escape(sentence)}", status)
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
