"""Lists in pages: the newest first, each page after the last row of the one before."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, and_, or_
from sqlalchemy.orm import Session

from shared.errors import InvalidInputError
from shared.store.tables import CaseRow, JobRow


def newest_first(
    session: Session, query: Select[Any], table: type[CaseRow] | type[JobRow], app: str, before: str | None
) -> Select[Any]:
    """The query with its rows in order, and only those that are older than the row ``before`` where one is named.

    Refuses (404) one that is not there.
    """
    query = query.order_by(table.created_ns.desc(), table.id.desc())
    if before is None:
        return query
    last: CaseRow | JobRow | None = session.get(table, before)  # type: ignore[assignment]
    if last is None or last.app != app:
        raise InvalidInputError(f"{app} has none called {before!r} to list what came before", status=404)
    same_time = and_(table.created_ns == last.created_ns, table.id < before)
    return query.where(or_(table.created_ns < last.created_ns, same_time))
