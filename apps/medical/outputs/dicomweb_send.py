"""A DICOMweb client that stores (STOW-RS, PS3.18 10.5): reports to an archive, over HTTP."""

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

from apps.medical.outputs.dicom_send import SEGMENTATION, ArchiveAway, ClassNotTaken, ReportRefused, read_report
from shared.bounded_connection import bounded_connection
from shared.errors import InvalidInputError
from shared.job_client import connection_problem

AUTHORIZATION = "TRIVIUM_ARCHIVE_AUTHORIZATION"
_PATIENCE_S, _LONGEST_S = 60.0, 600.0
"""How long nothing may come, and how long one request may take altogether."""
_LONGEST_ANSWER = 1 << 20
_REFUSED = (400, 406, 409, 413, 415, 422)
_HINTS = {401: f"; {AUTHORIZATION} holds what it wants", 404: "; is that the address of its DICOMweb?"}
_HINTS[403] = _HINTS[401]
_THERE, _CLASS_NOT_SUPPORTED = 0x0111, 0x0122
"""Reasons of a failure (PS3.18 I.2.2, PS3.4 B.2.3): the archive has it already, and takes none of its class."""


@dataclass(frozen=True, slots=True)
class WebArchive:
    """An archive by the address of its DICOMweb, under which ``studies`` is. ``str`` gives it as it was written."""

    url: str
    authorization: str | None = None
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        return self.url

    def send(self, reports: Sequence[Path]) -> Iterator[tuple[Path, ReportRefused | None]]:
        """Sends files one after the other; yields each when the archive has it, or refuses it.

        Raises ``ArchiveAway`` where it cannot be reached or takes nothing; ``OSError`` where a file cannot be read.
        """
        for path in reports:
            try:
                sop_class = str(read_report(path).SOPClassUID)
            except InvalidInputError as error:
                yield path, ReportRefused(str(error))
                continue
            yield path, self._store(path.read_bytes(), sop_class)

    def check(self) -> None:
        """Asks whether there is a DICOMweb that lets us in. Raises ``ArchiveAway``."""
        status, _ = self._ask("GET", "/studies?limit=1", {"Accept": "application/dicom+json"})
        if status not in (200, 204):
            raise self._away(status)

    def _store(self, content: bytes, sop_class: str) -> ReportRefused | None:
        boundary = secrets.token_hex(16)
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        headers = {"Content-Type": kind, "Accept": "application/dicom+json"}
        status, said = self._ask("POST", "/studies", headers, head + content + f"\r\n--{boundary}--\r\n".encode())
        if status not in (200, 202, *_REFUSED):
            raise self._away(status)
        failed, reason = _failure(said)
        if reason == _THERE or (status in (200, 202) and not failed):
            return None
        if reason is not None and reason >> 8 == 0xA7:
            raise ArchiveAway(f"{self} takes nothing now (status 0x{reason:04X})")
        if sop_class == SEGMENTATION and (status == 415 or reason == _CLASS_NOT_SUPPORTED):
            return ClassNotTaken(f"{self} takes no segmentations")
        return ReportRefused(f"{self} refuses it (status {status if reason is None else f'0x{reason:04X}'})")

    def _away(self, status: int) -> ArchiveAway:
        return ArchiveAway(f"{self} answers {status}{_HINTS.get(status, '')}")

    def _ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> tuple[int, bytes]:
        """Status and content of the answer. Raises ``ArchiveAway`` where there is none."""
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        tls = (self.tls or ssl.create_default_context()) if parts.scheme == "https" else None
        connection = bounded_connection(
            parts.hostname, parts.port, timeout_s=_PATIENCE_S, longest_s=_LONGEST_S, tls=tls
        )
        allowed = {} if self.authorization is None else {"Authorization": self.authorization}
        try:
            connection.request(method, parts.path.rstrip("/") + path, body, {**headers, **allowed})
            response = connection.getresponse()
            content = response.read(_LONGEST_ANSWER + 1)
        except (OSError, HTTPException, ValueError) as error:  # ValueError: a chunk of negative length
            raise ArchiveAway(f"{self} cannot be reached ({connection_problem(error)})") from error
        finally:
            connection.end()
        if len(content) > _LONGEST_ANSWER:
            raise ArchiveAway(f"{self} answers with more than {_LONGEST_ANSWER >> 20} MiB; is that its DICOMweb?")
        return response.status, content


def read_web_archive(text: str, authorization: str | None = None, tls: ssl.SSLContext | None = None) -> WebArchive:
    """``https://HOST/PATH``, to which ``authorization`` is sent as the header of that name.

    Raises ``InvalidInputError``.
    """
    try:
        parts = urlsplit(text)
        good = (
            bool(parts.hostname) and parts.username is None and not (parts.query or parts.fragment) and parts.port != 0
        )
    except ValueError:
        good = False
    if not good:
        raise InvalidInputError(f"{text} is no address of a DICOMweb; write it as https://archive.hospital/dicom-web")
    if tls is not None and parts.scheme == "http":
        raise InvalidInputError(f"with --tls-cert both directions are TLS; write {text} as https://")
    if authorization is not None and not (authorization.isascii() and authorization.isprintable()):
        raise InvalidInputError(f"{AUTHORIZATION} holds what no header can; write it as Bearer TOKEN")
    return WebArchive(text.rstrip("/"), authorization, tls)


def _failure(answer: bytes) -> tuple[bool, int | None]:
    """Whether an answer (PS3.18 I.2) names an instance that failed, and the reason; nothing of what is no JSON."""
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
