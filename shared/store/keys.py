"""API keys in the store's database, shared by all servers on it."""

from __future__ import annotations

import re
import time
from typing import cast

from sqlalchemy import CursorResult, Engine, delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from shared.errors import InvalidInputError
from shared.secure.access import Key, Role, digest_of, new_key
from shared.store.tables import KeyRow

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}\Z")


class Keys:
    """Adds, lists and revokes keys. Backups do not contain keys: restoring an old one would revive revoked keys."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, name: str, role: Role, group: str | None = None) -> str:
        """Creates a key and returns it; it cannot be read again later.

        A key with a ``group`` sees only the cases and jobs of keys in that group. Raises ``InvalidInputError`` if a
        name is invalid, the name of the key is taken, or an operator's key has a group.
        """
        for value, owner in ((name, "a key"), (group, "a group")):
            if value is not None and not _NAME.match(value):
                raise InvalidInputError(
                    f"{value!r} cannot be the name of {owner}; use up to 64 letters, digits and . _ @ -, as in pacs-1"
                )
        if group is not None and role == "operator":
            raise InvalidInputError("an operator sees all cases; leave the group out, or create a user's key")
        key = new_key()
        row = KeyRow(name=name, role=role, digest=digest_of(key), created_ns=time.time_ns(), group=group)
        try:
            with Session(self._engine) as session, session.begin():
                session.add(row)
        except IntegrityError as error:
            raise InvalidInputError(f"a key {name!r} already exists; revoke it, or choose another name") from error
        return key

    def revoke(self, name: str) -> None:
        """Deletes a key. Raises ``InvalidInputError`` if no key has this name."""
        with Session(self._engine) as session, session.begin():
            result = cast(CursorResult[None], session.execute(delete(KeyRow).where(KeyRow.name == name)))
        if not result.rowcount:
            raise InvalidInputError(f"there is no key {name!r}; `trivium keys list` shows the existing ones")

    def all(self) -> tuple[Key, ...]:
        """All keys, ordered by name."""
        with Session(self._engine) as session:
            rows = session.scalars(select(KeyRow).order_by(KeyRow.name)).all()
        return tuple(
            Key(
                name=row.name,
                role=cast(Role, row.role),
                digest=row.digest,
                created_ns=row.created_ns,
                group=row.group,
            )
            for row in rows
        )
