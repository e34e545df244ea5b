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

    def add(self, name: str, role: Role) -> str:
        """Makes a key and returns it, which nothing can afterwards. Refuses a name that is no name or is taken."""
        if not _NAME.match(name):
            raise InvalidInputError(
                f"{name!r} cannot be the name of a key; take up to 64 letters, digits and . _ @ -, as in pacs-1"
            )
        key = new_key()
        row = KeyRow(name=name, role=role, digest=digest_of(key), created_ns=time.time_ns())
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
            Key(name=row.name, role=cast(Role, row.role), digest=row.digest, created_ns=row.created_ns) for row in rows
        )
