"""The keys in the store's database, as all servers on it know them."""

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
    """Adds, lists and revokes keys. No backup holds them: an old one would bring revoked keys back."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, name: str, role: Role, group: str | None = None) -> str:
        """Makes a key and returns it, which nothing can afterwards. Refuses a name that is no name or is taken.

        With a ``group`` it sees only the cases and jobs of keys of that group, and an operator has none.
        """
        for given, what in ((name, "a key"), (group, "a group")):
            if given is not None and not _NAME.match(given):
                raise InvalidInputError(
                    f"{given!r} cannot be the name of {what}; take up to 64 letters, digits and . _ @ -, as in pacs-1"
                )
        if group is not None and role == "operator":
            raise InvalidInputError("an operator sees the cases of all; leave the group out, or make it a user's key")
        key = new_key()
        row = KeyRow(name=name, role=role, digest=digest_of(key), created_ns=time.time_ns(), group=group)
        try:
            with Session(self._engine) as session, session.begin():
                session.add(row)
        except IntegrityError as error:
            raise InvalidInputError(f"there is a key {name!r} already; revoke it, or choose another name") from error
        return key

    def revoke(self, name: str) -> None:
        """Deletes a key. Refuses a name that no key has."""
        with Session(self._engine) as session, session.begin():
            found = cast(CursorResult[None], session.execute(delete(KeyRow).where(KeyRow.name == name)))
        if not found.rowcount:
            raise InvalidInputError(f"there is no key {name!r}; `trivium keys list` names those that there are")

    def all(self) -> tuple[Key, ...]:
        """The keys, by name."""
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
