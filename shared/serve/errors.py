"""Expected errors, each as one sentence: JSON for programs, a page for a person's browser."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from shared.errors import InvalidInputError
from shared.serve.middleware.error_answers import json_error, wants_page
from shared.serve.middleware.per_client import TooMany
from shared.serve.pages import Pages
from shared.serve.runtime.connection import drain_body
from shared.serve.runtime.limits import Busy

_HEADINGS = {404: "There is no such page", 405: "This cannot be done here", 503: "Not available at the moment"}
_UNREADABLE = "There was an error parsing the body"
"""FastAPI's words for JSON that is no text, or nested too deeply."""
_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain")
"""What tools send a body as where they are not told."""


def answer_errors(server: FastAPI, pages: Pages) -> None:
    """Has the server answer what its routes raise."""

    def answer(request: Request, sentence: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
        # A request may hold halves of characters, which no answer can.
        sentence = sentence.encode(errors="backslashreplace").decode()
        if wants_page(request.scope):
            response: Response = pages.error(_HEADINGS.get(status, "This did not work"), sentence, status)
        else:
            response = json_error(request.url.path, sentence, status)
        response.headers.update(headers or {})
        return response

    @server.exception_handler(InvalidInputError)
    async def invalid_input(request: Request, error: InvalidInputError) -> Response:
        await drain_body(request)
        headers = {"Retry-After": str(error.retry_after_s)} if isinstance(error, Busy | TooMany) else None
        return answer(request, str(error), error.status, headers)

    @server.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        if error.status_code == 405 and (allowed := _methods_of(server, request)):
            # Starlette names those of one route alone, and a path may have several.
            words = f"{request.url.path} takes {', '.join(allowed)}, not {request.method}"
            return answer(request, words, 405, {"Allow": ", ".join(allowed)})
        if error.status_code == 400 and str(error.detail) == _UNREADABLE:
            return answer(request, "the request's body cannot be read: send JSON in UTF-8", 400)
        unknown = f"there is nothing at {request.url.path}"
        sentence = unknown if error.status_code == 404 and error.detail == "Not Found" else str(error.detail)
        return answer(request, sentence, error.status_code, error.headers)

    @server.exception_handler(RequestValidationError)
    async def invalid_parameters(request: Request, error: RequestValidationError) -> Response:
        if any(tuple(fault["loc"]) == ("body",) for fault in error.errors()):
            kind = request.headers.get("content-type", "")
            if kind.partition(";")[0].strip().lower() in _FORMS:
                sentence = f"the request cannot be read: its body is sent as {kind}; send JSON as application/json"
                return answer(request, sentence, 422)
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        return answer(request, f"the request cannot be read: {faults}", 422)


def _methods_of(server: FastAPI, request: Request) -> list[str]:
    """The methods that some route takes at the request's path."""
    scopes = {method: {**request.scope, "method": method} for method in _METHODS}
    return [m for m, scope in scopes.items() if any(r.matches(scope)[0] is Match.FULL for r in server.routes)]
