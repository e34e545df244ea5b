"""Lists in pages, newest rows first. Each page starts after the last row of the previous one."""

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
    """The query restricted to an application's rows, the newest first.

    With ``before``, the id of a row, only older rows; with ``group``, only those of that group. Raises
    ``InvalidInputError`` (404) if there is no such row among them.
    """
    query = query.where(table.app == app).order_by(table.created_ns.desc(), table.id.desc())
    if group is not None:
        query = query.where(table.group == group)
    if before is None:
        return query
    last: CaseRow | JobRow | None = session.get(table, before)  # type: ignore[assignment]
    if last is None or last.app != app or group not in (None, last.group):
        raise InvalidInputError(
            f"{app} has no entry {before!r}; list without it, or before the last entry of a page", status=404
        )
    same_time = and_(table.created_ns == last.created_ns, table.id < before)
    return query.where(or_(table.created_ns < last.created_ns, same_time))
