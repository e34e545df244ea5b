"""Answers unexpected exceptions with one sentence, and logs them under a number that the answer states."""

from __future__ import annotations

import asyncio
import logging
import secrets

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.serve.middleware.error_answers import error_answer, json_error
from shared.store.database import is_database_gone, reason_of
from shared.store.disk import DiskFull, is_disk_full

log = logging.getLogger("trivium.serve")
_NO_DATABASE = "the store's database cannot be reached at the moment, and nothing was kept; try again in a few seconds"
_RETRY_AFTER_S = 5


class UnexpectedErrors:
    """Answers 500 to an exception, 507 to a full disk, and 503 if the database is unreachable or the server shuts down.

    A client that has disconnected gets no answer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        response_started = False

        async def send_and_note_start(message: Message) -> None:
            nonlocal response_started
            response_started = response_started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, send_and_note_start)
        except asyncio.CancelledError:
            # The server is shutting down, and its grace period is over.
            if not response_started:
                await json_error(scope["path"], "the server is being shut down", 503)(scope, receive, send)
        except ClientDisconnect:
            log.info("the client of %s disconnected", _request_line(scope))
        except Exception as error:
            if is_disk_full(error) and not response_started:
                log.error("%s: the disk of the store is full", _request_line(scope))
                full = DiskFull("nothing was kept")
                await error_answer(scope, str(full), full.status)(scope, receive, send)
                return
            if is_database_gone(error) and not response_started:
                log.error("%s: the store's database cannot be reached: %s", _request_line(scope), reason_of(error))
                refusal = error_answer(scope, _NO_DATABASE, 503)
                refusal.headers["Retry-After"] = str(_RETRY_AFTER_S)
                await refusal(scope, receive, send)
                return
            number = secrets.token_hex(4)
            request_id = scope["state"]["request_id"]
            log.exception("error %s in %s, request %s", number, _request_line(scope), request_id)
            if response_started:
                raise
            sentence = f"Something went wrong in the server (error {number}). Its log has the details."
            await error_answer(scope, sentence, 500)(scope, receive, send)


def _request_line(scope: Scope) -> str:
    """The method and path, with unprintable characters escaped, so that it is one line of the log."""
    path = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in scope["path"])
    return f"{scope['method']} {path}"
