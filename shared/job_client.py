"""A client of a running server's jobs, for programs that hand in cases by themselves. Needs Python alone."""

from __future__ import annotations

import json
import os
import re
import secrets
import ssl
import threading
from collections.abc import Iterator, Mapping, Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit

from shared.bounded_connection import BoundedConnection, bounded_connection
from shared.errors import InvalidInputError
from shared.secure.access import API_KEY_HEADER, PREFIX

_CHUNK = 1 << 20
_LONGEST_ANSWER = 256 << 20
_PATIENCE_S, _LONGEST_S = 60.0, 3600.0
"""How long nothing may come, and how long one request may take altogether, its upload included."""
_REFUSED = (413, 422)
_FAILED = (400, 500, 504)
_OTHER = "; is that address Trivium's?"
_NO_KEY = "; TRIVIUM_KEY holds the key that it wants"
_WRONG_KEY = "; the key that was sent is not known, or was revoked"
_UNKNOWN_AUTHORITY = (18, 19, 20, 21)
"""X509_verify_cert's errors of a certificate whose authority is not among those that are trusted."""


class ServerAway(Exception):
    """The server cannot be asked now, or not by this client: what was to be done may be tried again later."""


class JobFailed(Exception):
    """The server cannot answer this case; ``status`` says whether for the input (413, 422) or by a fault of its own.

    The words are the server's: they name files as they were handed in.
    """

    def __init__(self, words: str, status: int) -> None:
        super().__init__(words)
        self.status = status

    @property
    def is_refusal(self) -> bool:
        """Whether the input is at fault, so that the same answer would come again."""
        return self.status in _REFUSED


class JobGone(Exception):
    """The server does not know the job, the case or the file any more, or somebody cancelled the job."""


class JobClient:
    """The jobs of the application ``app`` on the server at ``server``, which may stand behind a proxy.

    ``credentials`` are headers that say who asks, for the server and for such a proxy. Once ``stop`` is set, an upload
    is broken off with ``ServerAway``.
    """

    def __init__(self, server: str, app: str, credentials: Mapping[str, str] | None = None) -> None:
        try:
            parts = urlsplit(server)
            port = parts.port
        except ValueError as error:
            raise InvalidInputError(f"{server} is no address of a server ({error})") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise InvalidInputError(f"{server} is no address of a server; write it as http://127.0.0.1:8000")
        self.server, self.app, self.stop = server.rstrip("/"), app, threading.Event()
        self._host, self._port, self._root = parts.hostname, port, parts.path.rstrip("/")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._headers = dict(credentials or {})

    def check(self) -> None:
        """Asks whether the server knows the application. Raises ``ServerAway`` where it does not or does not answer."""
        try:
            self._ask("GET", f"/api/{self.app}/jobs?limit=1")
        except JobGone as error:
            raise ServerAway(f"the server at {self.server} knows no {self.app}; is that address Trivium's?") from error

    def submit(self, files: Sequence[Path], options: Mapping[str, str]) -> str:
        """Hands in a job, its files streamed from the disk; returns the job's path on the server."""
        boundary = secrets.token_hex(16)
        fields = [(_field(boundary, name, value), None) for name, value in options.items()]
        parts = [*fields, *((_file(boundary, path), path) for path in files)]
        end = f"--{boundary}--\r\n".encode()
        size = sum(len(head) + (0 if path is None else path.stat().st_size + 2) for head, path in parts) + len(end)
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}", "Content-Length": str(size)}
        answer = self._ask("POST", f"/api/{self.app}/jobs", headers, self._body(parts, end))
        return str(_json(answer)["url"])

    def job(self, path: str) -> dict[str, Any]:
        """How far the job at this path is, as docs/integrators.md says."""
        return _json(self._ask("GET", path))

    def cancel(self, path: str) -> None:
        """Cancels the job, where it has not ended."""
        self._ask("DELETE", path)

    def case(self, path: str) -> dict[str, Any]:
        """An answered case."""
        return _json(self._ask("GET", path))

    def file(self, path: str) -> bytes:
        """The content of a case's file."""
        return self._ask("GET", path)

    def _body(self, parts: Sequence[tuple[bytes, Path | None]], end: bytes) -> Iterator[bytes]:
        for head, path in parts:
            yield head
            if path is not None:
                with path.open("rb") as file:
                    while chunk := file.read(_CHUNK):
                        if self.stop.is_set():
                            raise ServerAway("the gateway ends")
                        yield chunk
                yield b"\r\n"
        yield end

    def _ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: Iterator[bytes] | None = None
    ) -> bytes:
        """The content of the answer. Raises ``ServerAway``, ``JobFailed`` or ``JobGone`` for any that is no success."""
        connection = self._connect()
        try:
            # A server that knows the path it is reached under has put that before the addresses in its answers.
            connection.putrequest(method, path if path.startswith(f"{self._root}/") else self._root + path)
            for name, value in {**self._headers, **(headers or {})}.items():
                connection.putheader(name, value)
            connection.endheaders()
            try:
                for chunk in body or ():
                    connection.send(chunk)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it has answered before it read all
            response = connection.getresponse()
            content = response.read(_LONGEST_ANSWER + 1)
        except (OSError, HTTPException, ValueError) as error:  # ValueError: a chunk of negative length
            raise ServerAway(f"the server at {self.server} does not answer ({connection_problem(error)})") from error
        finally:
            connection.end()
        if 200 <= response.status < 300 and len(content) <= _LONGEST_ANSWER:
            return content
        raise self._problem(method, response, content)

    def _problem(self, method: str, response: HTTPResponse, content: bytes) -> Exception:
        status, sentence = response.status, _sentence(content)
        hints = {401: _WRONG_KEY if self._headers else _NO_KEY, 404: _OTHER}
        if sentence is None:
            # A proxy's, which says nothing of the case: 413 may be its own limit of a body.
            led = in_one_line(response.getheader("Location", ""))
            hint = f"; give --server the address that it leads to, {led}" if led else _OTHER
            return ServerAway(f"the server at {self.server} answers {status}{hints.get(status, hint)}")
        if status in (404, 410) and method == "GET":
            return JobGone("it is gone from the server")
        if status in _FAILED or (status in _REFUSED and method == "POST"):
            return JobFailed(sentence, status)
        return ServerAway(f"the server at {self.server} answers {status}{hints.get(status, '')}")

    def _connect(self) -> BoundedConnection:
        return bounded_connection(self._host, self._port, timeout_s=_PATIENCE_S, longest_s=_LONGEST_S, tls=self._tls)


def credentials() -> dict[str, str]:
    """The headers by TRIVIUM_KEY, a key, and by TRIVIUM_AUTHORIZATION, what a proxy before the server wants.

    With both the key goes in ``X-Api-Key``. Refuses what is no key, and what no header can hold.
    """
    key, whole = (os.environ.get(name, "").strip() for name in ("TRIVIUM_KEY", "TRIVIUM_AUTHORIZATION"))
    if key and not re.fullmatch(rf"{PREFIX}[\w-]+", key, re.ASCII):
        raise InvalidInputError(f"TRIVIUM_KEY holds no key; write it as `trivium keys add` prints it: {PREFIX}...")
    if not (whole.isascii() and whole.isprintable()):
        raise InvalidInputError("TRIVIUM_AUTHORIZATION holds what no header can; write it as Bearer TOKEN")
    if key and whole:
        return {"Authorization": whole, API_KEY_HEADER: key}
    return {"Authorization": f"Bearer {key}" if key else whole} if key or whole else {}


def connection_problem(error: Exception) -> str:
    """Why a server cannot be asked, and what to do where its certificate or TLS itself is the cause."""
    cause = error.reason if isinstance(error, URLError) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        unknown = cause.verify_code in _UNKNOWN_AUTHORITY
        hint = "; name its authority's file in SSL_CERT_FILE" if unknown else ""
        return f"its certificate is not trusted: {cause.verify_message.rstrip('.')}{hint}"
    if isinstance(cause, ssl.SSLError) and cause.reason == "WRONG_VERSION_NUMBER":
        return "it does not answer over TLS; write its address with http://"
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused; is the server running?"
    return getattr(cause, "strerror", None) or in_one_line(str(cause)) or type(cause).__name__


def in_one_line(text: str) -> str:
    """The first 200 characters of what another machine says, so that it can be logged: nothing that moves a cursor."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text[:200]).split())


def _field(boundary: str, name: str, value: str) -> bytes:
    return f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


def _file(boundary: str, path: Path) -> bytes:
    disposition = f'Content-Disposition: form-data; name="files"; filename="{path.name}"'
    return f"--{boundary}\r\n{disposition}\r\nContent-Type: application/octet-stream\r\n\r\n".encode()


def _json(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ServerAway("what answers is no server of Trivium")
    return found


def _sentence(content: bytes) -> str | None:
    """The sentence of a refusal of Trivium's; None where the answer is none of its."""
    try:
        return str(json.loads(content)["detail"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
