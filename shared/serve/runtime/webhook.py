"""Tells an address of the operator's that a job has ended, as Standard Webhooks has it, until it answers with 2xx.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
import urllib.request
from functools import partial
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from shared.bounded_connection import BoundedConnection, BoundedTLSConnection
from shared.errors import InvalidInputError
from shared.job_client import in_one_line
from shared.serve.runtime.threads import Threads
from shared.serve.settings import Settings
from shared.store.jobs import Job, JobStore
from shared.utc_time import iso_utc

log = logging.getLogger("trivium.serve")
_PREFIX, _KEY_BYTES = "whsec_", range(24, 65)
_LOOK_S = 2.0
_TIMEOUT_S = 10.0
_MIN_S, _MAX_S = 15.0, 86_400.0
"""A job is told of again after as long as has passed since it ended, but for a day at the most."""


def webhook_of(settings: Settings) -> Webhook | None:
    """The webhook that the settings name, or None. Refuses half of one, and what is no address or no key."""
    if settings.webhook_url is None and settings.webhook_secret is None:
        return None
    if settings.webhook_url is None or settings.webhook_secret is None:
        raise InvalidInputError("set both TRIVIUM_WEBHOOK_URL and TRIVIUM_WEBHOOK_SECRET, or neither")
    address, secret = urlsplit(settings.webhook_url), settings.webhook_secret.get_secret_value()
    if address.scheme not in ("http", "https") or not address.hostname:
        raise InvalidInputError("TRIVIUM_WEBHOOK_URL is no address of the kind https://HOST/PATH")
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except ValueError:
        key = b""
    if not secret.startswith(_PREFIX) or len(key) not in _KEY_BYTES:
        raise InvalidInputError(
            "TRIVIUM_WEBHOOK_SECRET is not whsec_ and 24 to 64 bytes in base64; `openssl rand -base64 32` makes some"
        )
    return Webhook(settings.webhook_url, key, settings.root)


class _Bounded(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Connections that take no longer than the time-out altogether. ``end`` them afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self._made: list[BoundedConnection] = []

    def http_open(self, req: urllib.request.Request) -> Any:
        """The answer."""
        return self.do_open(partial(self._make, BoundedConnection), req)

    def https_open(self, req: urllib.request.Request) -> Any:
        """The answer over TLS."""
        return self.do_open(partial(self._make, BoundedTLSConnection), req)

    def _make(self, kind: type[BoundedConnection], *given: Any, **named: Any) -> BoundedConnection:
        connection = kind(*given, **named)
        connection.longest_s = _TIMEOUT_S
        self._made.append(connection)
        return connection

    def end(self) -> None:
        """Closes the connections."""
        for connection in self._made:
            connection.end()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The operator allowed one address, not those that it leads to."""

    def redirect_request(self, *_: Any) -> None:
        """None: the redirection is an error."""


class Webhook:
    """Posts the identifier, application, state and group of each job that has ended to ``url``; nothing else of it.

    The body is signed with ``key``. What was not delivered is in the store: it outlasts the server, and of several
    servers on one store one delivers it.
    """

    def __init__(self, url: str, key: bytes, root: str) -> None:
        self._url, self._key, self._root = url, key, root

    async def run(self, jobs: JobStore) -> None:
        """Delivers until it is cancelled; then it waits for nothing."""
        thread = Threads("webhook", 1)
        try:
            while True:
                try:
                    while await thread.run(self._deliver_one, jobs):
                        pass
                except Exception as error:
                    log.error("jobs of which the webhook is to be told cannot be looked at: %s", error)
                await asyncio.sleep(_LOOK_S)
        finally:
            thread.close()

    def _deliver_one(self, jobs: JobStore) -> bool:
        """Tells of a job that is to be told of now; False where there is none."""
        claimed = jobs.claim_to_tell(_MIN_S, _MAX_S)
        if claimed is None:
            return False
        job, last = claimed
        bounded = _Bounded()
        opener = urllib.request.build_opener(_NoRedirects, bounded)
        try:
            with opener.open(self._request(job), timeout=_TIMEOUT_S):
                jobs.was_told(job)
        except (OSError, HTTPException, ValueError) as error:  # ValueError: a redirection to what is no address
            words = "it is told no more" if last else "it is told again later"
            level, why = logging.ERROR if last else logging.WARNING, in_one_line(str(error))
            log.log(level, "the webhook and job %s: %s; %s", job.id, why, words)
        finally:
            bounded.end()
        return True

    def _request(self, job: Job) -> urllib.request.Request:
        now = iso_utc(time.time())
        data = {"app": job.app, "job": job.id, "state": job.state, "url": f"{self._root}/api/{job.app}/jobs/{job.id}"}
        data |= {} if job.group is None else {"group": job.group}
        body = json.dumps({"type": f"job.{job.state}", "timestamp": now, "data": data}).encode()
        moment = str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "trivium",
            "webhook-id": job.id,
            "webhook-timestamp": moment,
            "webhook-signature": signature(self._key, job.id, moment, body),
        }
        return urllib.request.Request(self._url, body, headers, method="POST")


def signature(key: bytes, number: str, moment: str, body: bytes) -> str:
    """``v1,`` and the HMAC-SHA256 of identifier, time and body in base64, as the receiver computes it too."""
    signed = hmac.new(key, b".".join((number.encode(), moment.encode(), body)), hashlib.sha256).digest()
    return f"v1,{base64.b64encode(signed).decode()}"
