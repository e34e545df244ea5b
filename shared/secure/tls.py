"""The certificate by which a server is known over TLS."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from shared.errors import InvalidInputError


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
