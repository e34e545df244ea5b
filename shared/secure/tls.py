"""The TLS certificate of a server, and its renewal while the server runs."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shared.atomic_files import FileState, file_state
from shared.errors import InvalidInputError

log = logging.getLogger("trivium")


@dataclass(frozen=True, slots=True)
class Certificate:
    """The PEM files of a certificate with its chain of issuers, and of its private key without a passphrase."""

    chain: Path
    key: Path


def read_certificate(chain: Path | None, key: Path | None) -> Certificate | None:
    """The certificate in two files, or None if neither is given.

    Raises ``InvalidInputError`` if only one is given, or if they are not a certificate and its private key.
    """
    if chain is None and key is None:
        return None
    if chain is None or key is None:
        raise InvalidInputError("TLS needs both --tls-cert and --tls-key (TRIVIUM_TLS_CERT, TRIVIUM_TLS_KEY)")

    def no_passphrase() -> bytes:
        raise InvalidInputError(f"{key} needs a passphrase; `openssl pkey -in {key}` writes the key without one")

    for file in (chain, key):
        try:
            file.open("rb").close()
        except OSError as error:
            raise InvalidInputError(f"{file} cannot be read: {error.strerror}") from error
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(chain, key, no_passphrase)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = getattr(error, "reason", None) or error
        raise InvalidInputError(
            f"{chain} and {key} are not a certificate and its private key in PEM ({reason})"
        ) from error
    return Certificate(chain, key)


class CertificateReloader:
    """Detects that the files of a certificate were replaced while the server runs, as happens before it expires."""

    def __init__(self, certificate: Certificate) -> None:
        self._certificate = certificate
        self._last_stamps = self._stamps()

    def reload_if_changed(self, use: Callable[[Certificate], None]) -> None:
        """Calls ``use`` if the files have changed since the last call. A pair that cannot be used is logged once."""
        stamps = self._stamps()
        if stamps == self._last_stamps:
            return
        self._last_stamps = stamps
        try:
            read_certificate(self._certificate.chain, self._certificate.key)
            use(self._certificate)
        except (InvalidInputError, OSError) as error:
            log.error("the new certificate cannot be used, so the previous one stays in use: %s", error)
        else:
            log.info("the certificate in %s was replaced and is now in use", self._certificate.chain)

    def _stamps(self) -> list[FileState]:
        return [file_state(file) for file in (self._certificate.chain, self._certificate.key)]
