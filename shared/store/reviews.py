"""Reviews in the store's database: one per case and reviewer, deleted together with the case."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sqlalchemy import ColumnElement, Engine, delete, select, update
from sqlalchemy.exc import IntegrityError, ProgrammingError
from sqlalchemy.orm import Session

from shared.errors import InvalidInputError
from shared.review import Review
from shared.store.disk import raising_disk_full
from shared.store.tables import CaseRow, ReviewRow
from shared.utc_time import iso_utc

_NOBODY = ""
"""The reviewer column if no name was given, because a primary key cannot be null."""

_NOT_KEPT = "the review is not kept"
_CONFLICTS = (IntegrityError, ProgrammingError)
"""Errors for a row whose case was deleted or whose key was taken; pg8000 raises the second in place of the first."""


class ReviewLine(NamedTuple):
    """The reviewer and time of a review, without its content."""

    reviewer: str | None
    reviewed: str


class ReviewStore:
    """Keeps, lists and deletes reviews."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def put(self, case_id: str, review: Review) -> None:
        """Saves a review, replacing the reviewer's earlier one. Raises ``InvalidInputError`` (404) without the case."""
        row = _to_row(case_id, review)
        try:
            self._merge(row)
        except _CONFLICTS:
            self._check_case_exists(case_id)
            self._merge(row)  # the reviewer's first review was saved at the same moment by another request

    def put_if_unchanged(self, case_id: str, review: Review, earlier: str | None) -> None:
        """Saves a review if the reviewer's current review has the time ``earlier``; None means that there is none.

        Raises ``InvalidInputError`` if the current review is another one (412) or the case was deleted (404).
        """
        row = _to_row(case_id, review)
        try:
            with raising_disk_full(_NOT_KEPT), Session(self._engine) as session, session.begin():
                current = session.get(ReviewRow, (case_id, row.reviewer))
                if (None if current is None else _to_review(current).reviewed) != earlier:
                    raise _changed_meanwhile()
                if current is None:
                    session.add(row)
                    return
                # A concurrent request that saved between the read and this update has changed the time.
                unchanged = (*_is_row_of(case_id, row.reviewer), ReviewRow.reviewed_ns == current.reviewed_ns)
                values = {
                    "reviewed_ns": row.reviewed_ns,
                    "verdicts": row.verdicts,
                    "missed": row.missed,
                    "note": row.note,
                }
                updated = session.execute(
                    update(ReviewRow).where(*unchanged).values(values).returning(ReviewRow.case_id)
                ).all()
                if not updated:
                    raise _changed_meanwhile()
        except _CONFLICTS:
            self._check_case_exists(case_id)
            raise _changed_meanwhile() from None

    def _merge(self, row: ReviewRow) -> None:
        with raising_disk_full(_NOT_KEPT), Session(self._engine) as session, session.begin():
            session.merge(row)

    def _check_case_exists(self, case_id: str) -> None:
        with Session(self._engine) as session:
            if session.get(CaseRow, case_id) is None:
                raise InvalidInputError(f"the case {case_id} is gone from the store", status=404) from None

    def of_case(self, case_id: str) -> list[Review]:
        """The reviews of a case, the newest first."""
        query = select(ReviewRow).where(ReviewRow.case_id == case_id).order_by(ReviewRow.reviewed_ns.desc())
        with Session(self._engine) as session:
            return [_to_review(row) for row in session.scalars(query)]

    def of_app(self, app: str, group: str | None = None) -> dict[str, list[Review]]:
        """The reviews of an application's cases, by case id: the oldest case first, its newest review first.

        With ``group``, only those of the group's cases.
        """
        query = (
            select(ReviewRow)
            .join(CaseRow, CaseRow.id == ReviewRow.case_id)
            .where(CaseRow.app == app)
            .order_by(CaseRow.created_ns, CaseRow.id, ReviewRow.reviewed_ns.desc())
        )
        if group is not None:
            query = query.where(CaseRow.group == group)
        reviews: dict[str, list[Review]] = {}
        with Session(self._engine) as session:
            for row in session.scalars(query):
                reviews.setdefault(row.case_id, []).append(_to_review(row))
        return reviews

    def lines(self, case_ids: Iterable[str]) -> dict[str, list[ReviewLine]]:
        """Who reviewed these cases and when, by case id, the newest review first; omits cases without a review."""
        columns = (ReviewRow.case_id, ReviewRow.reviewer, ReviewRow.reviewed_ns)
        query = select(*columns).where(ReviewRow.case_id.in_(list(case_ids))).order_by(ReviewRow.reviewed_ns.desc())
        lines: dict[str, list[ReviewLine]] = {}
        with Session(self._engine) as session:
            for case_id, reviewer, reviewed_ns in session.execute(query):
                lines.setdefault(case_id, []).append(ReviewLine(reviewer or None, iso_utc(reviewed_ns / 1e9)))
        return lines

    def remove(self, case_id: str, reviewer: str | None) -> None:
        """Deletes a reviewer's review of a case, if there is one."""
        with Session(self._engine) as session, session.begin():
            session.execute(delete(ReviewRow).where(*_is_row_of(case_id, reviewer or _NOBODY)))


def _is_row_of(case_id: str, reviewer: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """The conditions that select a reviewer's row of a case."""
    return ReviewRow.case_id == case_id, ReviewRow.reviewer == reviewer


def _changed_meanwhile() -> InvalidInputError:
    return InvalidInputError("the reviewer's review has changed meanwhile; read it again first", status=412)


def _to_row(case_id: str, review: Review) -> ReviewRow:
    return ReviewRow(
        case_id=case_id,
        reviewer=review.reviewer or _NOBODY,
        reviewed_ns=review.reviewed_ns,
        verdicts={str(number): verdict for number, verdict in sorted(review.verdicts.items())},
        missed=[dict(finding) for finding in review.missed],
        note=review.note,
    )


def _to_review(row: ReviewRow) -> Review:
    return Review(
        reviewer=row.reviewer or None,
        reviewed_ns=row.reviewed_ns,
        verdicts={int(number): verdict for number, verdict in row.verdicts.items()},
        missed=tuple(row.missed),
        note=row.note,
    )
