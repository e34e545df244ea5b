"""The groups of keys that a store knows."""

from __future__ import annotations

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from shared.errors import InvalidInputError
from shared.store.tables import CaseRow, JobRow, KeyRow


def check_group(engine: Engine, group: str) -> None:
    """Raises ``InvalidInputError`` if no key, case or job of the store has the group; the message names its groups."""
    known: set[str | None] = set()
    with Session(engine) as session:
        for table in (KeyRow, CaseRow, JobRow):
            known.update(session.scalars(select(table.group).distinct()))
    if group not in known:
        names = ", ".join(sorted(filter(None, known)))
        raise InvalidInputError(f"the store has no group {group!r}{f'; its groups are {names}' if names else ''}")
