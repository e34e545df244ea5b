"""The certificate by which a server is known over TLS."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shared.errors import InvalidInputError

log = logging.getLogger("trivium")


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate with those that lead from it to its authority, and its private key without a passphrase; PEM."""

    chain: Path
    key: Path


def read_certificate(chain: Path | None, key: Path | None) -> Certificate | None:
    """The certificate in two files, or None where neither is named. Refuses one alone, and what is no such pair."""
    if chain is None and key is None:
        return None
    if chain is None or key is None:
        raise InvalidInputError("TLS needs both --tls-cert and --tls-key (TRIVIUM_TLS_CERT, TRIVIUM_TLS_KEY)")

    def no_passphrase() -> bytes:
        raise InvalidInputError(f"{key} asks for a passphrase; `openssl pkey -in {key}` writes the key without one")

    for file in (chain, key):
        try:
            file.open("rb").close()
        except OSError as error:
            raise InvalidInputError(f"{file} cannot be read: {error.strerror}") from error
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(chain, key, no_passphrase)
    except (OSError, ValueError) as error:  # TLS's own errors are OSErrors
        why = getattr(error, "reason", None) or error
        raise InvalidInputError(f"{chain} and {key} are no certificate and its private key in PEM ({why})") from error
    return Certificate(chain, key)


class Renewals:
    """Takes up a certificate whose files are replaced while a server listens, as they are before it expires."""

    def __init__(self, certificate: Certificate) -> None:
        self._certificate = certificate
        self._seen = self._stamps()

    def take_up(self, use: Callable[[Certificate], None]) -> None:
        """Calls ``use`` where there is another pair since the last time. One that cannot be used is logged once."""
        found = self._stamps()
        if found == self._seen:
            return
        self._seen = found
        try:
            read_certificate(self._certificate.chain, self._certificate.key)
            use(self._certificate)
        except (InvalidInputError, OSError) as error:
            log.error("the new certificate cannot be used, and the one before stays: %s", error)
        else:
            log.info("the certificate in %s was replaced, and is used from now on", self._certificate.chain)

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(file) for file in (self._certificate.chain, self._certificate.key)]


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
