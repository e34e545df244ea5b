"""A client for the jobs of a running server, for programs that submit cases. Uses only Python's standard library."""

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

_CHUNK_BYTES = 1 << 20
_MAX_ANSWER_BYTES = 256 << 20
_TIMEOUT_S, _MAX_REQUEST_S = 60.0, 3600.0
"""The timeout while nothing arrives, and the time limit of a whole request, including its upload."""
_INPUT_REFUSED = (413, 422)
_SERVER_FAILED = (400, 500, 504)
_WRONG_ADDRESS_HINT = "; is that address Trivium's?"
_NO_KEY_HINT = "; it requires a key: set TRIVIUM_KEY"
_WRONG_KEY_HINT = "; the key is unknown or was revoked"
_UNKNOWN_AUTHORITY = (18, 19, 20, 21)
"""Error codes of X509_verify_cert for a certificate from an authority that is not trusted."""
_NOT_RFC_5280 = range(80, 94)
"""Error codes of X509_verify_cert with X509_V_FLAG_X509_STRICT, which Python 3.13 sets and earlier versions do not."""


class ServerUnavailable(Exception):
    """The server cannot be reached, or does not accept this client. The request can be retried later."""


class JobFailed(Exception):
    """The server cannot answer this case. With the ``status`` 413 or 422 the input is at fault, else the server.

    The message is the server's and names files as they were uploaded.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    @property
    def is_refusal(self) -> bool:
        """Whether the input is at fault, so that a retry would get the same answer."""
        return self.status in _INPUT_REFUSED


class JobGone(Exception):
    """The server no longer has the job, the case or the file, or the job was cancelled."""


class JobClient:
    """The jobs of the application ``app`` on the server at the URL ``server``, which may be behind a proxy.

    ``credentials`` are headers that authenticate the client to the server and to the proxy. Once ``stop`` is set,
    uploads are aborted with ``ServerUnavailable``. Methods raise ``ServerUnavailable``, ``JobFailed`` or ``JobGone``.
    """

    def __init__(self, server: str, app: str, credentials: Mapping[str, str] | None = None) -> None:
        try:
            parts = urlsplit(server)
            port = parts.port
        except ValueError as error:
            raise InvalidInputError(f"{server} is not a server address ({error})") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise InvalidInputError(f"{server} is not a server address; write it as http://127.0.0.1:8000")
        self.server, self.app, self.stop = server.rstrip("/"), app, threading.Event()
        self._host, self._port, self._root = parts.hostname, port, parts.path.rstrip("/")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._headers = dict(credentials or {})

    def check(self) -> None:
        """Checks that the server answers and has the application. Raises ``ServerUnavailable`` if not."""
        try:
            self._request("GET", f"/api/{self.app}/jobs?limit=1")
        except JobGone as error:
            raise ServerUnavailable(
                f"the server at {self.server} has no application {self.app}; is that address Trivium's?"
            ) from error

    def submit(self, files: Sequence[Path], options: Mapping[str, str]) -> str:
        """Submits a job, streaming its files from disk; returns the path of the job on the server."""
        boundary = secrets.token_hex(16)
        fields = [(_field(boundary, name, value), None) for name, value in options.items()]
        parts = [*fields, *((_file(boundary, path), path) for path in files)]
        end = f"--{boundary}--\r\n".encode()
        size = sum(len(head) + (0 if path is None else path.stat().st_size + 2) for head, path in parts) + len(end)
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}", "Content-Length": str(size)}
        answer = self._request("POST", f"/api/{self.app}/jobs", headers, self._body(parts, end))
        return str(_json(answer)["url"])

    def job(self, path: str) -> dict[str, Any]:
        """The state of the job at this path, in the fields that docs/integrators.md lists."""
        return _json(self._request("GET", path))

    def cancel(self, path: str) -> None:
        """Cancels the job if it has not ended."""
        self._request("DELETE", path)

    def case(self, path: str) -> dict[str, Any]:
        """The case at this path, with its result."""
        return _json(self._request("GET", path))

    def file(self, path: str) -> bytes:
        """The content of the case file at this path."""
        return self._request("GET", path)

    def _body(self, parts: Sequence[tuple[bytes, Path | None]], end: bytes) -> Iterator[bytes]:
        for head, path in parts:
            yield head
            if path is not None:
                with path.open("rb") as file:
                    while chunk := file.read(_CHUNK_BYTES):
                        if self.stop.is_set():
                            raise ServerUnavailable("the gateway is stopping")
                        yield chunk
                yield b"\r\n"
        yield end

    def _request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: Iterator[bytes] | None = None
    ) -> bytes:
        """The body of a successful response; raises ``ServerUnavailable``, ``JobFailed`` or ``JobGone`` otherwise."""
        connection = self._connect()
        try:
            # A server that knows its root path has already put it before the addresses in its answers.
            connection.putrequest(method, path if path.startswith(f"{self._root}/") else self._root + path)
            for name, value in {**self._headers, **(headers or {})}.items():
                connection.putheader(name, value)
            connection.endheaders()
            try:
                for chunk in body or ():
                    connection.send(chunk)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the server answered before it had read the whole body
            response = connection.getresponse()
            content = response.read(_MAX_ANSWER_BYTES + 1)
        except (OSError, HTTPException, ValueError) as error:  # ValueError: a chunk with a negative length
            raise ServerUnavailable(
                f"the server at {self.server} does not answer ({connection_problem(error)})"
            ) from error
        finally:
            connection.end()
        if 200 <= response.status < 300 and len(content) <= _MAX_ANSWER_BYTES:
            return content
        raise self._problem(method, response, content)

    def _problem(self, method: str, response: HTTPResponse, content: bytes) -> Exception:
        status, detail = response.status, _detail(content)
        hints = {401: _WRONG_KEY_HINT if self._headers else _NO_KEY_HINT, 404: _WRONG_ADDRESS_HINT}
        if detail is None:
            # The answer of a proxy, which says nothing about the case: 413 may be the proxy's own limit on a body.
            location = in_one_line(response.getheader("Location", ""))
            hint = f"; set --server to the address it redirects to, {location}" if location else _WRONG_ADDRESS_HINT
            return ServerUnavailable(f"the server at {self.server} answers {status}{hints.get(status, hint)}")
        if status in (404, 410) and method == "GET":
            return JobGone("the server no longer has it")
        if status in _SERVER_FAILED or (status in _INPUT_REFUSED and method == "POST"):
            return JobFailed(detail, status)
        return ServerUnavailable(f"the server at {self.server} answers {status}{hints.get(status, '')}")

    def _connect(self) -> BoundedConnection:
        return bounded_connection(
            self._host, self._port, timeout_s=_TIMEOUT_S, max_total_s=_MAX_REQUEST_S, tls=self._tls
        )


def credentials() -> dict[str, str]:
    """The headers for TRIVIUM_KEY, a key, and TRIVIUM_AUTHORIZATION, which a proxy in front of the server requires.

    If both are set, the key goes into ``X-Api-Key``. Raises ``InvalidInputError`` if TRIVIUM_KEY is not a key, or if
    TRIVIUM_AUTHORIZATION has characters that a header cannot have.
    """
    key, authorization = (os.environ.get(name, "").strip() for name in ("TRIVIUM_KEY", "TRIVIUM_AUTHORIZATION"))
    if key and not re.fullmatch(rf"{PREFIX}[\w-]+", key, re.ASCII):
        raise InvalidInputError(f"TRIVIUM_KEY is not a key; copy it as `trivium keys add` prints it: {PREFIX}...")
    if not (authorization.isascii() and authorization.isprintable()):
        raise InvalidInputError(
            "TRIVIUM_AUTHORIZATION has characters that a header cannot have; write it as Bearer TOKEN"
        )
    if key and authorization:
        return {"Authorization": authorization, API_KEY_HEADER: key}
    return {"Authorization": f"Bearer {key}" if key else authorization} if key or authorization else {}


def connection_problem(error: Exception) -> str:
    """Why the connection to a server failed, with a remedy if its certificate or TLS is the cause."""
    cause = error.reason if isinstance(error, URLError) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        hint = ""
        if cause.verify_code in _UNKNOWN_AUTHORITY:
            hint = "; set SSL_CERT_FILE to the file of its authority's certificate"
        elif cause.verify_code in _NOT_RFC_5280:
            hint = (
                "; Python 3.13 requires this of certificates (RFC 5280): have it, or its authority's, issued anew, "
                "or run Trivium on Python 3.12"
            )
        return f"its certificate is not trusted: {cause.verify_message.rstrip('.')}{hint}"
    if isinstance(cause, ssl.SSLError) and cause.reason == "WRONG_VERSION_NUMBER":
        return "it does not use TLS; write its address with http://"
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused; is the server running?"
    return getattr(cause, "strerror", None) or in_one_line(str(cause)) or type(cause).__name__


def in_one_line(text: str) -> str:
    """The first 200 characters of a text from another machine, safe to log: one line, without control characters."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text[:200]).split())


def _field(boundary: str, name: str, value: str) -> bytes:
    return f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


def _file(boundary: str, path: Path) -> bytes:
    disposition = f'Content-Disposition: form-data; name="files"; filename="{path.name}"'
    return f"--{boundary}\r\n{disposition}\r\nContent-Type: application/octet-stream\r\n\r\n".encode()


def _json(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise ServerUnavailable("the answer is not from a Trivium server")
    return document


def _detail(content: bytes) -> str | None:
    """The ``detail`` of an error answer from Trivium; None if the answer is not Trivium's."""
    try:
        return str(json.loads(content)["detail"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
