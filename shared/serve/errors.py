"""Answers to expected errors: one sentence, as JSON for programs or as a page for a browser."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from shared.errors import InvalidInputError
from shared.serve.metrics import METHODS
from shared.serve.middleware.error_answers import json_error, wants_page
from shared.serve.middleware.per_client import TooMany
from shared.serve.oip.routes import EXTENSIONS
from shared.serve.pages import Pages
from shared.serve.runtime.connection import drain_body
from shared.serve.runtime.limits import Busy

_HEADINGS = {404: "Page not found", 405: "Method not allowed", 503: "Temporarily unavailable"}
_UNREADABLE_JSON = "There was an error parsing the body"
"""FastAPI's message for a JSON body that is not valid Unicode, or nested too deeply."""
_DEFAULT_CONTENT_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain")
"""The content types that HTTP tools send a body with by default."""


def answer_errors(server: FastAPI, pages: Pages) -> None:
    """Registers handlers that turn the exceptions of the routes into answers."""

    def answer(request: Request, sentence: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
        # The sentence may quote lone surrogates from the request, which UTF-8 cannot encode.
        sentence = sentence.encode(errors="backslashreplace").decode()
        if wants_page(request.scope):
            response: Response = pages.error(_HEADINGS.get(status, "The request failed"), sentence, status)
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
        if error.status_code == 405 and (allowed := _allowed_methods(server, request)):
            # Starlette lists the methods of a single route, but several routes may share a path.
            sentence = f"{request.url.path} accepts {', '.join(allowed)}, not {request.method}"
            return answer(request, sentence, 405, {"Allow": ", ".join(allowed)})
        if error.status_code == 400 and str(error.detail) == _UNREADABLE_JSON:
            return answer(request, "the request body cannot be read: send JSON in UTF-8", 400)
        not_found = f"there is nothing at {request.url.path}"
        if request.url.path.startswith("/v2/"):  # such as shared memory, which Triton's clients offer
            not_found += f"; the protocol's extensions on this server are {', '.join(EXTENSIONS)}"
        sentence = not_found if error.status_code == 404 and error.detail == "Not Found" else str(error.detail)
        return answer(request, sentence, error.status_code, error.headers)

    @server.exception_handler(RequestValidationError)
    async def invalid_parameters(request: Request, error: RequestValidationError) -> Response:
        if any(tuple(fault["loc"]) == ("body",) for fault in error.errors()):
            content_type = request.headers.get("content-type", "")
            if content_type.partition(";")[0].strip().lower() in _DEFAULT_CONTENT_TYPES:
                sentence = (
                    f"the request cannot be read: its content type is {content_type}; send JSON as application/json"
                )
                return answer(request, sentence, 422)
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        return answer(request, f"the request cannot be read: {faults}", 422)


def _allowed_methods(server: FastAPI, request: Request) -> list[str]:
    """The methods that any route accepts at the request's path."""
    scopes = {method: {**request.scope, "method": method} for method in METHODS}
    return [m for m, scope in scopes.items() if any(r.matches(scope)[0] is Match.FULL for r in server.routes)]
