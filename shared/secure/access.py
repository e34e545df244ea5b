"""API keys, which identify the clients of a server, and their roles."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

PREFIX = "trv_"
API_KEY_HEADER = "X-Api-Key"
_KEY_BYTES = 32
Role = Literal["user", "operator"]
"""A user predicts, and reads, reviews and deletes cases; an operator also changes models and reads metrics."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """A key as it is stored: only its digest, never the key itself.

    A key with a ``group`` sees only the cases and jobs of keys in that group; a key without a group sees all.
    """

    name: str
    role: Role
    digest: str
    created_ns: int
    group: str | None = None


def new_key() -> str:
    """A new key of 256 random bits, which cannot be guessed, so the number of attempts need not be limited."""
    return PREFIX + secrets.token_urlsafe(_KEY_BYTES)


def digest_of(key: str) -> str:
    """The SHA-256 of a key in hexadecimal. A key of that much randomness needs neither a salt nor a slow hash."""
    return hashlib.sha256(key.encode()).hexdigest()


def presented_key(headers: Mapping[str, Any]) -> str | None:
    """The key in the headers of a request, whose names are lower-case; None if there is none.

    If there is an ``X-Api-Key``, that is the key, and ``Authorization`` belongs to a proxy. Otherwise the key is in
    ``Authorization``: after ``Bearer``, or as the password of ``Basic``, with any user name.
    """
    if key := str(headers.get(API_KEY_HEADER.lower(), "")).strip():
        return key
    scheme, _, value = str(headers.get("authorization", "")).partition(" ")
    match scheme.lower():
        case "bearer":
            return value.strip() or None
        case "basic":
            try:
                return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2] or None
            except ValueError:
                return None
    return None


def matching_key(keys: Iterable[Key], presented: str) -> Key | None:
    """The stored key that matches the presented one, or None. The time taken reveals nothing about the digests."""
    digest = digest_of(presented)
    match = None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            match = key
    return match
