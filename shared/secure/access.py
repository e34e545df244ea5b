"""Keys by which a server knows who asks, and what each of them may do."""

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
_BYTES = 32
Role = Literal["user", "operator"]
"""A user predicts and reads, reviews and deletes cases; an operator also changes models and reads metrics."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """A key as it is kept: never itself, but its digest.

    ``group`` are the keys whose cases and jobs it sees, and no others; None sees those of all.
    """

    name: str
    role: Role
    digest: str
    created_ns: int
    group: str | None = None


def new_key() -> str:
    """A key of 256 random bits, which cannot be guessed: no number of tries needs to be bounded."""
    return PREFIX + secrets.token_urlsafe(_BYTES)


def digest_of(key: str) -> str:
    """The SHA-256 of a key in hexadecimal. What is that random needs neither salt nor a slow hash."""
    return hashlib.sha256(key.encode()).hexdigest()


def presented_key(headers: Mapping[str, Any]) -> str | None:
    """The key in a request's headers, by their names in small letters.

    ``X-Api-Key``, where it is there: then ``Authorization`` is a proxy's. Else ``Authorization``: ``Bearer KEY``, or
    the password of ``Basic``, whoever it names.
    """
    if own := str(headers.get(API_KEY_HEADER.lower(), "")).strip():
        return own
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
    """The key that was presented, or None; how long that takes says nothing of the digests."""
    digest = digest_of(presented)
    found = None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key
    return found
