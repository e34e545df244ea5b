"""Who asks, by the keys in the store, which are read again every two seconds at the most."""

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

_FRESH_S = 2.0
_WANTED = (
    "this server wants a key, which whoever runs it gives out: in a browser load the page again, and enter the key as "
    "the password, with any name; programs send it as `Authorization: Bearer KEY` or `X-Api-Key: KEY`, and the "
    "commands of trivium take it from TRIVIUM_KEY"
)


class KnownKeys:
    """The keys that let somebody in. One that is revoked, on whichever server, does not any more after two seconds."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._known: tuple[Key, ...] = ()
        self._read_s = float("-inf")
        self._reading = asyncio.Lock()

    async def find(self, headers: Mapping[str, Any]) -> Key:
        """The key in a request's headers (``presented_key``).

        Raises ``InvalidInputError``: 401, or 503 without the database.
        """
        presented = presented_key(headers)
        if presented is not None:
            await self._refresh()
            if (key := matching_key(self._known, presented)) is not None:
                return key
            raise InvalidInputError(f"the key is not known, or was revoked; {_WANTED}", status=401)
        raise InvalidInputError(_WANTED, status=401)

    def any(self) -> bool:
        """Whether there is a key at all, by the database."""
        return bool(self._keys.all())

    async def _refresh(self) -> None:
        if time.monotonic() - self._read_s < _FRESH_S:
            return
        async with self._reading:
            if time.monotonic() - self._read_s < _FRESH_S:
                return
            began = time.monotonic()
            try:
                self._known = await run_in_threadpool(self._keys.all)
            except Exception as error:
                if not is_database_gone(error):
                    raise
                sentence = "the store's database, which holds the keys, cannot be reached; try again in a few seconds"
                raise InvalidInputError(sentence, status=503) from error
            self._read_s = began


def group_of(scope: MutableMapping[str, Any]) -> str | None:
    """The group of the key that an ASGI request brought, as ``get_group`` gives it."""
    key: Key | None = scope.get("state", {}).get("key")
    return None if key is None else key.group


async def get_group(request: Request) -> str | None:
    """The group whose cases and jobs who asks may see; None may see all, as every server's without keys."""
    return group_of(request.scope)


GroupDep = Annotated[str | None, Depends(get_group)]


def check_no_group(group: str | None) -> None:
    """Refuses (403) a key of a group what tells of the work of all groups."""
    if group is not None:
        raise InvalidInputError(
            f"the counters are of the requests of all, and this key is of the group {group}: ask for them with a key "
            "that has no group (`trivium keys add NAME`)",
            status=403,
        )


async def require_no_group(group: GroupDep) -> None:
    """Refuses (403) the key of a group."""
    check_no_group(group)


NoGroup = Depends(require_no_group)


def check_operator(key: Key | None) -> None:
    """Refuses (403) a key that may not do what only operators may. None is a server that wants no keys."""
    if key is not None and key.role != "operator":
        raise InvalidInputError(
            f"the key {key.name!r} is a user's; this is for operators (`trivium keys add NAME --role operator`)",
            status=403,
        )


async def require_operator(request: Request) -> None:
    """Refuses (403) the key of a user, where keys are wanted."""
    check_operator(getattr(request.state, "key", None))


OperatorOnly = Depends(require_operator)
