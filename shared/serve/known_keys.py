"""Authentication and authorization by the keys in the store, which are cached for two seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, MutableMapping
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool

from shared.errors import InvalidInputError
from shared.secure.access import Key, matching_key, presented_key
from shared.store.database import is_database_gone
from shared.store.keys import Keys

_CACHE_S = 2.0
_KEY_REQUIRED = (
    "this server requires a key, which its operator issues: in a browser, reload the page and enter the key as the "
    "password, with any user name; programs send it as `Authorization: Bearer KEY` or `X-Api-Key: KEY`, and the "
    "trivium commands read it from TRIVIUM_KEY"
)


class KnownKeys:
    """The valid keys. A key that is revoked, on any server of the store, is refused after two seconds at most."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._cached_keys: tuple[Key, ...] = ()
        self._cached_at_s = float("-inf")
        self._refresh_lock = asyncio.Lock()

    async def find(self, headers: Mapping[str, Any]) -> Key:
        """The key in a request's headers (``presented_key``).

        Raises ``InvalidInputError``: 401 without a valid key, 503 if the database cannot be reached.
        """
        presented = presented_key(headers)
        if presented is not None:
            await self._refresh()
            if (key := matching_key(self._cached_keys, presented)) is not None:
                return key
            raise InvalidInputError(f"the key is unknown or revoked; {_KEY_REQUIRED}", status=401)
        raise InvalidInputError(_KEY_REQUIRED, status=401)

    def any(self) -> bool:
        """Whether the database has any key. Does not use the cache."""
        return bool(self._keys.all())

    async def _refresh(self) -> None:
        if time.monotonic() - self._cached_at_s < _CACHE_S:
            return
        async with self._refresh_lock:
            if time.monotonic() - self._cached_at_s < _CACHE_S:
                return
            started_s = time.monotonic()
            try:
                self._cached_keys = await run_in_threadpool(self._keys.all)
            except Exception as error:
                if not is_database_gone(error):
                    raise
                sentence = "the store's database, which holds the keys, cannot be reached; try again in a few seconds"
                raise InvalidInputError(sentence, status=503) from error
            self._cached_at_s = started_s


def group_of(scope: MutableMapping[str, Any]) -> str | None:
    """The group of the key that an ASGI request was sent with, as ``get_group`` returns it."""
    key: Key | None = scope.get("state", {}).get("key")
    return None if key is None else key.group


async def get_group(request: Request) -> str | None:
    """The group whose cases and jobs the caller may see; None may see all, which includes servers without keys."""
    return group_of(request.scope)


GroupDep = Annotated[str | None, Depends(get_group)]


def check_no_group(group: str | None) -> None:
    """Raises ``InvalidInputError`` (403) for a key of a group, which may not see figures about other groups' work."""
    if group is not None:
        raise InvalidInputError(
            f"these counters cover the requests of all groups, and this key belongs to the group {group}: use a key "
            "without a group (`trivium keys add NAME`)",
            status=403,
        )


async def require_no_group(group: GroupDep) -> None:
    """Raises ``InvalidInputError`` (403) for a key of a group."""
    check_no_group(group)


NoGroup = Depends(require_no_group)


def check_operator(key: Key | None) -> None:
    """Raises ``InvalidInputError`` (403) for a key that is not an operator's. None stands for a server without keys."""
    if key is not None and key.role != "operator":
        raise InvalidInputError(
            f"the key {key.name!r} is a user's; only operators may do this (`trivium keys add NAME --role operator`)",
            status=403,
        )


async def require_operator(request: Request) -> None:
    """Raises ``InvalidInputError`` (403) for a user's key, on a server that requires keys."""
    check_operator(getattr(request.state, "key", None))


OperatorOnly = Depends(require_operator)
