"""Lists in pages: the newest first, each page after the last row of the one before."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, and_, or_
from sqlalchemy.orm import Session

from shared.errors import InvalidInputError
from shared.store.tables import CaseRow, JobRow


def newest_first(
    session: Session,
    query: Select[Any],
    table: type[CaseRow] | type[JobRow],
    app: str,
    before: str | None,
    group: str | None,
) -> Select[Any]:
    """The query of an application's rows in order, and only those older than the row ``before`` where one is named.

    So only those of a ``group``. Refuses (404) a row that is not among them.
    """
    query = query.where(table.app == app).order_by(table.created_ns.desc(), table.id.desc())
    if group is not None:
        query = query.where(table.group == group)
    if before is None:
        return query
    last: CaseRow | JobRow | None = session.get(table, before)  # type: ignore[assignment]
    if last is None or last.app != app or group not in (None, last.group):
        raise InvalidInputError(f"{app} has none called {before!r} to list what came before", status=404)
    same_time = and_(table.created_ns == last.created_ns, table.id < before)
    return query.where(or_(table.created_ns < last.created_ns, same_time))
