"""An error as the path that was asked for answers it: JSON in its protocol's words, or a page for a person."""

from __future__ import annotations

from html import escape

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import Scope


def error_answer(scope: Scope, sentence: str, status: int) -> Response:
    """The answer to a request that cannot be served, made without templates."""
    if wants_page(scope):
        return HTMLResponse(f"<!doctype html><title>Error</title><p>{escape(sentence)}", status)
    return json_error(scope["path"], sentence, status)


def json_error(path: str, sentence: str, status: int) -> JSONResponse:
    """``{"error": ...}`` under the Open Inference Protocol, as that asks, and ``{"detail": ...}`` elsewhere."""
    oip = path == "/v2" or path.startswith("/v2/")
    return JSONResponse({"error" if oip else "detail": sentence}, status)


def wants_page(scope: Scope) -> bool:
    """Whether a person's browser asks, for a page rather than for data."""
    path: str = scope["path"]
    data = path.startswith(("/api/", "/v2/", "/static/")) or path in ("/v2", "/metrics", "/healthz", "/openapi.json")
    return not data and "text/html" in Headers(scope=scope).get("accept", "")
