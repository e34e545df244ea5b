"""A DICOMweb client that sends reports to an archive over HTTP (STOW-RS, PS3.18 10.5)."""

from __future__ import annotations

import json
import secrets
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from apps.medical.outputs.dicom_send import (
    SEGMENTATION,
    ArchiveUnavailable,
    ClassNotSupported,
    ReportRefused,
    read_report,
)
from shared.bounded_connection import bounded_connection
from shared.errors import InvalidInputError
from shared.job_client import connection_problem

AUTHORIZATION = "TRIVIUM_ARCHIVE_AUTHORIZATION"
_IDLE_TIMEOUT_S, _TOTAL_TIMEOUT_S = 60.0, 600.0
"""Timeouts for a pause in the response, and for a whole request."""
_MAX_RESPONSE_BYTES = 1 << 20
_REFUSED = (400, 406, 409, 413, 415, 422)
_HINTS = {401: f"; set {AUTHORIZATION} to its credentials", 404: "; is that the address of its DICOMweb service?"}
_HINTS[403] = _HINTS[401]
_DUPLICATE_UID, _CLASS_NOT_SUPPORTED = 0x0111, 0x0122
"""Failure reasons (PS3.18 I.2.2, PS3.4 B.2.3): the archive already has the instance; its SOP class is not supported."""


@dataclass(frozen=True, slots=True)
class WebArchive:
    """An archive by the base URL of its DICOMweb service, under which ``studies`` is. ``str`` gives that URL."""

    url: str
    authorization: str | None = None
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        return self.url

    def send(self, reports: Sequence[Path]) -> Iterator[tuple[Path, ReportRefused | None]]:
        """Sends the files one after the other. Yields each when it is stored (with None) or refused (with the error).

        Raises ``ArchiveUnavailable`` if the archive cannot be reached or does not accept data now, and ``OSError`` if a
        file cannot be read.
        """
        for path in reports:
            try:
                sop_class = str(read_report(path).SOPClassUID)
            except InvalidInputError as error:
                yield path, ReportRefused(str(error))
                continue
            yield path, self._store(path.read_bytes(), sop_class)

    def check(self) -> None:
        """Checks that the DICOMweb service grants access. Raises ``ArchiveUnavailable`` if it does not."""
        status, _ = self._request("GET", "/studies?limit=1", {"Accept": "application/dicom+json"})
        if status not in (200, 204):
            raise self._unavailable(status)

    def _store(self, content: bytes, sop_class: str) -> ReportRefused | None:
        boundary = secrets.token_hex(16)
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        content_type = f'multipart/related; type="application/dicom"; boundary={boundary}'
        headers = {"Content-Type": content_type, "Accept": "application/dicom+json"}
        status, response = self._request(
            "POST", "/studies", headers, head + content + f"\r\n--{boundary}--\r\n".encode()
        )
        if status not in (200, 202, *_REFUSED):
            raise self._unavailable(status)
        failed, reason = _failure(response)
        if reason == _DUPLICATE_UID or (status in (200, 202) and not failed):
            return None
        if reason is not None and reason >> 8 == 0xA7:
            raise ArchiveUnavailable(f"{self} does not accept data now (status 0x{reason:04X})")
        if sop_class == SEGMENTATION and (status == 415 or reason == _CLASS_NOT_SUPPORTED):
            return ClassNotSupported(f"{self} does not accept segmentations")
        return ReportRefused(f"{self} refuses it (status {status if reason is None else f'0x{reason:04X}'})")

    def _unavailable(self, status: int) -> ArchiveUnavailable:
        return ArchiveUnavailable(f"{self} responds with status {status}{_HINTS.get(status, '')}")

    def _request(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> tuple[int, bytes]:
        """Sends a request. Returns status and content of the response. Raises ``ArchiveUnavailable``."""
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        tls = (self.tls or ssl.create_default_context()) if parts.scheme == "https" else None
        connection = bounded_connection(
            parts.hostname, parts.port, timeout_s=_IDLE_TIMEOUT_S, max_total_s=_TOTAL_TIMEOUT_S, tls=tls
        )
        credentials = {} if self.authorization is None else {"Authorization": self.authorization}
        try:
            connection.request(method, parts.path.rstrip("/") + path, body, {**headers, **credentials})
            response = connection.getresponse()
            content = response.read(_MAX_RESPONSE_BYTES + 1)
        except (OSError, HTTPException, ValueError) as error:  # ValueError: a chunk of negative length
            raise ArchiveUnavailable(f"{self} cannot be reached ({connection_problem(error)})") from error
        finally:
            connection.end()
        if len(content) > _MAX_RESPONSE_BYTES:
            raise ArchiveUnavailable(
                f"{self} responds with more than {_MAX_RESPONSE_BYTES >> 20} MiB; is that its DICOMweb service?"
            )
        return response.status, content


def read_web_archive(text: str, authorization: str | None = None, tls: ssl.SSLContext | None = None) -> WebArchive:
    """Parses the URL ``https://HOST/PATH`` of a DICOMweb service; ``authorization`` is sent as the header of that name.

    Raises ``InvalidInputError``.
    """
    try:
        parts = urlsplit(text)
        is_valid = (
            bool(parts.hostname) and parts.username is None and not (parts.query or parts.fragment) and parts.port != 0
        )
    except ValueError:
        is_valid = False
    if not is_valid:
        raise InvalidInputError(f"{text} is not a DICOMweb address; write it as https://archive.hospital/dicom-web")
    if tls is not None and parts.scheme == "http":
        raise InvalidInputError(f"with --tls-cert both directions use TLS; write {text} as https://")
    if authorization is not None and not (authorization.isascii() and authorization.isprintable()):
        raise InvalidInputError(f"{AUTHORIZATION} has characters that a header cannot have; write it as Bearer TOKEN")
    return WebArchive(text.rstrip("/"), authorization, tls)


def _failure(answer: bytes) -> tuple[bool, int | None]:
    """Whether a response (PS3.18 I.2) lists a failed instance, and the failure reason; (False, None) without JSON."""
    try:
        found: Any = json.loads(answer)
        (found,) = found if isinstance(found, list) else [found]
        failed = found.get("00081198", {}).get("Value", [])
    except (ValueError, AttributeError, RecursionError):
        return False, None
    try:
        reason = failed[0]["00081197"]["Value"][0]
    except (TypeError, LookupError):
        reason = None
    return bool(failed), reason if isinstance(reason, int) and 0 <= reason < 1 << 16 else None
