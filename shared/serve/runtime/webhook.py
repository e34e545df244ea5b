"""Notifies the operator's webhook of finished jobs, as Standard Webhooks specifies, with retries until it answers 2xx.

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
from shared.serve.runtime.recurring_error import RecurringError
from shared.serve.runtime.threads import Threads
from shared.serve.settings import Settings
from shared.store.jobs import Job, JobStore
from shared.utc_time import iso_utc

log = logging.getLogger("trivium.serve")
_SECRET_PREFIX, _KEY_LENGTHS = "whsec_", range(24, 65)
_POLL_INTERVAL_S = 2.0
_TIMEOUT_S = 10.0
_MIN_RETRY_S, _RETRY_PERIOD_S = 15.0, 86_400.0
"""A retry comes after as much time as has passed since the job ended, at least the minimum, so that the delay doubles.

The first attempt after the retry period, which starts at the end of the job, is the last one.
"""


def webhook_from_settings(settings: Settings) -> Webhook | None:
    """The webhook in the settings, or None. Raises ``InvalidInputError`` if it is incomplete or invalid."""
    if settings.webhook_url is None and settings.webhook_secret is None:
        return None
    if settings.webhook_url is None or settings.webhook_secret is None:
        raise InvalidInputError("set both TRIVIUM_WEBHOOK_URL and TRIVIUM_WEBHOOK_SECRET, or neither")
    address, secret = urlsplit(settings.webhook_url), settings.webhook_secret.get_secret_value()
    if address.scheme not in ("http", "https") or not address.hostname:
        raise InvalidInputError("TRIVIUM_WEBHOOK_URL must have the form https://HOST/PATH or http://HOST/PATH")
    try:
        key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
    except ValueError:
        key = b""
    if not secret.startswith(_SECRET_PREFIX) or len(key) not in _KEY_LENGTHS:
        raise InvalidInputError(
            "TRIVIUM_WEBHOOK_SECRET must be whsec_ followed by 24 to 64 bytes in base64, such as those that "
            "`openssl rand -base64 32` prints"
        )
    return Webhook(settings.webhook_url, key, settings.root)


class _BoundedHandler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens connections with a total time limit. Call ``end`` afterwards to close them."""

    def __init__(self) -> None:
        super().__init__()
        self._connections: list[BoundedConnection] = []

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(partial(self._connect, BoundedConnection), req)

    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(partial(self._connect, BoundedTLSConnection), req)

    def _connect(self, kind: type[BoundedConnection], *args: Any, **kwargs: Any) -> BoundedConnection:
        connection = kind(*args, **kwargs)
        connection.max_total_s = _TIMEOUT_S
        self._connections.append(connection)
        return connection

    def end(self) -> None:
        for connection in self._connections:
            connection.end()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: the operator allowed one address only."""

    def redirect_request(self, *_: Any) -> None:
        """None, which makes the redirect an error."""


class Webhook:
    """Posts the identifier, application, state, address and group of each finished job to ``url``, and nothing else.

    The body is signed with ``key``. Pending notifications are in the store, so they survive a restart of the server. If
    several servers share a store, only one of them sends each notification.
    """

    def __init__(self, url: str, key: bytes, root: str) -> None:
        self._url, self._key, self._root = url, key, root

    async def run(self, jobs: JobStore) -> None:
        """Sends notifications until it is cancelled, and then does not wait for the one being sent."""
        thread = Threads("webhook", 1)
        what = "for jobs to notify the webhook of"
        search_error = RecurringError(log, f"cannot look {what}", f"looks {what} again")
        try:
            while True:
                try:
                    while await thread.run(self._deliver_one, jobs):
                        pass
                    search_error.ended()
                except Exception as error:
                    search_error.occurred(error)
                await asyncio.sleep(_POLL_INTERVAL_S)
        finally:
            thread.close()

    def _deliver_one(self, jobs: JobStore) -> bool:
        """Sends the next due notification; returns False if there is none."""
        claimed = jobs.claim_notification(_MIN_RETRY_S, _RETRY_PERIOD_S)
        if claimed is None:
            return False
        job, is_last_attempt = claimed
        bounded_handler = _BoundedHandler()
        opener = urllib.request.build_opener(_NoRedirects, bounded_handler)
        try:
            with opener.open(self._request(job), timeout=_TIMEOUT_S):
                jobs.mark_notified(job)
        except (OSError, HTTPException, ValueError) as error:  # ValueError: a redirect to an invalid address
            outcome = "giving up" if is_last_attempt else "trying again later"
            level, reason = logging.ERROR if is_last_attempt else logging.WARNING, in_one_line(str(error))
            log.log(level, "cannot notify the webhook of job %s: %s; %s", job.id, reason, outcome)
        finally:
            bounded_handler.end()
        return True

    def _request(self, job: Job) -> urllib.request.Request:
        now = iso_utc(time.time())
        data = {"app": job.app, "job": job.id, "state": job.state, "url": f"{self._root}/api/{job.app}/jobs/{job.id}"}
        data |= {} if job.group is None else {"group": job.group}
        body = json.dumps({"type": f"job.{job.state}", "timestamp": now, "data": data}).encode()
        timestamp = str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "trivium",
            "webhook-id": job.id,
            "webhook-timestamp": timestamp,
            "webhook-signature": signature(self._key, job.id, timestamp, body),
        }
        return urllib.request.Request(self._url, body, headers, method="POST")


def signature(key: bytes, identifier: str, timestamp: str, body: bytes) -> str:
    """The signature header: ``v1,`` and the HMAC-SHA256 of identifier, timestamp and body in base64."""
    digest = hmac.new(key, b".".join((identifier.encode(), timestamp.encode(), body)), hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"
