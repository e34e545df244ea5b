"""Webhook notifications of finished jobs: signed, retried until accepted, and without patient data."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from shared.errors import InvalidInputError
from shared.serve.runtime import webhook
from shared.serve.settings import Settings
from shared.store.keys import Keys
from tests.shared.serve.echo import csv, until

Serve = Callable[..., TestClient]
JOBS = "/api/echo/jobs"
KEY = bytes(range(32))
SECRET = f"whsec_{base64.b64encode(KEY).decode()}"


class Receiver(ThreadingHTTPServer):
    """Answers with ``statuses`` in turn, then 204; ``received`` are the headers and bodies."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[tuple[str, dict[str, str], bytes]] = []
        self.statuses: list[int] = []
        self.url = f"http://127.0.0.1:{self.server_port}/hook"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Receiver)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server.received.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(server.statuses.pop(0) if server.statuses else 204)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setattr(webhook, "_POLL_INTERVAL_S", 0.01)
    monkeypatch.setattr(webhook, "_MIN_RETRY_S", 0.05)
    with Receiver() as found:
        threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True).start()
        yield found
        found.shutdown()


def to_be_told(settings: Settings) -> int:
    with closing(sqlite3.connect(settings.store / "trivium.sqlite")) as database:
        found: int = database.execute("SELECT count(*) FROM jobs WHERE tell_ns IS NOT NULL").fetchone()[0]
        return found


def serve_with(serve: Serve, receiver: Receiver) -> TestClient:
    settings = Settings(webhook_secret=SECRET)
    return serve(webhook_url=receiver.url, webhook_secret=settings.webhook_secret)


def test_the_webhook_gets_each_finished_job_and_no_patient_data(
    serve: Serve, receiver: Receiver, settings: Settings
) -> None:
    client = serve_with(serve, receiver)
    bad = client.post(JOBS, files=[("files", ("MUELLER.csv", b"none"))], data={"unit": "MUELLER"}).json()
    good = client.post(JOBS, files=[csv(1)]).json()
    until(lambda: len(receiver.received) == 2 and to_be_told(settings) == 0)
    notifications = {
        json.loads(body)["data"]["job"]: (path, headers, body) for path, headers, body in receiver.received
    }
    for job, state in ((bad, "failed"), (good, "done")):
        path, headers, body = notifications[job["job"]]
        content = json.loads(body)
        assert content.pop("timestamp") >= job["created"]
        data = {"app": "echo", "job": job["job"], "state": state, "url": job["url"]}
        assert content == {"type": f"job.{state}", "data": data}
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        code = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{code}" and headers["webhook-id"] == job["job"]
        assert path == "/hook" and client.get(data["url"]).json()["state"] == state
    assert b"MUELLER" not in b"".join(body for _, _, body in receiver.received)


def test_the_webhook_gets_the_group_of_a_job(serve: Serve, receiver: Receiver) -> None:
    webhook_secret = Settings(webhook_secret=SECRET).webhook_secret
    client = serve(webhook_url=receiver.url, webhook_secret=webhook_secret, require_key=True)
    keys = Keys(client.app.state.store.engine)  # type: ignore[attr-defined]
    jobs = [
        client.post(JOBS, data={"sample": "three"}, headers={"X-Api-Key": key}).json()["job"]
        for key in [keys.add("desk-1", "user", "desk"), keys.add("anna", "user")]
    ]

    def notified() -> dict[str, dict[str, str]]:
        return {data["job"]: data for data in (json.loads(body)["data"] for _, _, body in receiver.received)}

    until(lambda: set(notified()) == set(jobs))
    assert notified()[jobs[0]]["group"] == "desk" and "group" not in notified()[jobs[1]]


def test_the_signature_follows_standard_webhooks() -> None:
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")  # the test vector of the specification's libraries
    found = webhook.signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}')
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_notifications_are_retried_and_redirects_are_not_followed(
    serve: Serve, receiver: Receiver, settings: Settings
) -> None:
    receiver.statuses = [500, 302, 307]
    client = serve_with(serve, receiver)
    client.post(JOBS, data={"sample": "three"})
    until(lambda: len(receiver.received) == 4 and to_be_told(settings) == 0)
    assert {(path, headers["webhook-id"]) for path, headers, _ in receiver.received} == {
        ("/hook", receiver.received[0][1]["webhook-id"])
    }


def tell_one_job(receive: Callable[[socket.socket], None]) -> None:
    """Sends the notification of one job to a server that handles the connection with ``receive``."""

    class Jobs:
        def claim_notification(self, *_: float) -> tuple[Any, bool]:
            return SimpleNamespace(id="1", app="echo", state="done", group=None), False

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=lambda: receive(listening.accept()[0]), daemon=True)
        thread.start()
        jobs: Any = Jobs()
        assert webhook.Webhook(f"http://127.0.0.1:{listening.getsockname()[1]}/hook", KEY, "")._deliver_one(jobs)
        thread.join(30)


@pytest.mark.parametrize("answer", [b"302 T\r\nLocation: http://[bad", b"500 \x1b[31m" + b"A" * 60_000])
def test_an_invalid_webhook_answer_is_logged_in_one_short_line(answer: bytes, caplog: pytest.LogCaptureFixture) -> None:
    def serve_one(connection: socket.socket) -> None:
        with connection:
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 " + answer + b"\r\nContent-Length: 0\r\n\r\n")

    tell_one_job(serve_one)
    (record,) = caplog.records
    assert "trying again later" in record.message
    assert record.message.isprintable() and len(record.message) < 300


def test_a_trickling_webhook_answer_times_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(webhook, "_TIMEOUT_S", 0.3)

    broken_off = threading.Event()

    def drip(connection: socket.socket) -> None:
        with connection:
            try:
                for _ in range(2000):
                    connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                    broken_off.wait(0.01)
            except OSError:
                broken_off.set()

    tell_one_job(drip)
    assert broken_off.is_set() and "trying again later" in caplog.text


def test_pending_notifications_survive_a_restart(serve: Serve, receiver: Receiver, settings: Settings) -> None:
    receiver.statuses = [503] * 1000
    first = serve_with(serve, receiver)
    job = first.post(JOBS, data={"sample": "three"}).json()["job"]
    until(lambda: bool(receiver.received))
    first.__exit__(None, None, None)
    assert to_be_told(settings) == 1
    receiver.statuses.clear()
    serve_with(serve, receiver)
    until(lambda: to_be_told(settings) == 0)
    assert receiver.received[-1][1]["webhook-id"] == job


def test_notifications_are_given_up_after_a_day(
    serve: Serve,
    receiver: Receiver,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(webhook, "_RETRY_PERIOD_S", 0.2)
    receiver.statuses = [500] * 1000
    with caplog.at_level(logging.WARNING, "trivium.serve"):
        job = serve_with(serve, receiver).post(JOBS, data={"sample": "three"}).json()["job"]
        until(lambda: any("giving up" in record.message for record in caplog.records))
    assert to_be_told(settings) == 0 and len(receiver.received) > 1
    assert f"{job}: HTTP Error 500" in caplog.text and SECRET not in caplog.text


def test_without_a_webhook_nothing_is_sent(serve: Serve, receiver: Receiver, settings: Settings) -> None:
    client = serve()
    job = client.post(JOBS, data={"sample": "three"}).json()
    until(lambda: client.get(job["url"]).json()["state"] == "done")
    assert to_be_told(settings) == 0 and receiver.received == []


@pytest.mark.parametrize(
    ("url", "secret", "words"),
    [
        ("https://ris.example/hook", None, "set both"),
        (None, SECRET, "set both"),
        ("ris.example/hook", SECRET, "must have the form"),
        ("file:///etc/passwd", SECRET, "must have the form"),
        ("https://ris.example/hook", "secret", "openssl rand -base64 32"),
        ("https://ris.example/hook", "whsec_c2hvcnQ=", "24 to 64 bytes"),
    ],
)
def test_incomplete_webhook_settings_are_refused_at_the_start(url: str | None, secret: str | None, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words) as raised:
        webhook.webhook_from_settings(Settings(webhook_url=url, webhook_secret=secret))
    assert secret is None or secret not in str(raised.value)
