"""The reviews in the store's database: of each case one of each reviewer, which goes with the case."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sqlalchemy import ColumnElement, Engine, delete, select, update
from sqlalchemy.exc import IntegrityError, ProgrammingError
from sqlalchemy.orm import Session

from shared.errors import InvalidInputError
from shared.review import Review
from shared.store.disk import full_disk_named
from shared.store.tables import CaseRow, ReviewRow
from shared.utc_time import iso_utc

_NOBODY = ""
"""The reviewer in the table where nobody was named: a primary key takes no null."""

_NOT_KEPT = "the review is not kept"
_NO_CASE = (IntegrityError, ProgrammingError)
"""What a row is refused by whose case, or whose place, is gone; the latter is pg8000's word for the former."""


class ReviewLine(NamedTuple):
    """Who reviewed a case, and when, without what was said."""

    reviewer: str | None
    reviewed: str


class ReviewStore:
    """Keeps, lists and deletes reviews."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def put(self, case_id: str, review: Review) -> None:
        """Keeps a review in place of the reviewer's earlier one. Refuses (404) where the case is gone."""
        row = _row(case_id, review)
        try:
            self._merge(row)
        except _NO_CASE:
            self._refuse_gone(case_id)
            self._merge(row)  # the reviewer's first review came at the same moment, from elsewhere

    def put_over(self, case_id: str, review: Review, earlier: str | None) -> None:
        """Keeps a review in place of the reviewer's one of the time ``earlier``, or where that is None as the first.

        Refuses where the reviewer's review is another one (412) or the case is gone (404).
        """
        row = _row(case_id, review)
        try:
            with full_disk_named(_NOT_KEPT), Session(self._engine) as session, session.begin():
                held = session.get(ReviewRow, (case_id, row.reviewer))
                if (None if held is None else _review(held).reviewed) != earlier:
                    raise _changed()
                if held is None:
                    session.add(row)
                    return
                # Whoever came between the reading and this changed the time.
                one = (*_of(case_id, row.reviewer), ReviewRow.reviewed_ns == held.reviewed_ns)
                said = {
                    "reviewed_ns": row.reviewed_ns,
                    "verdicts": row.verdicts,
                    "missed": row.missed,
                    "note": row.note,
                }
                taken = session.execute(update(ReviewRow).where(*one).values(said).returning(ReviewRow.case_id)).all()
                if not taken:
                    raise _changed()
        except _NO_CASE:
            self._refuse_gone(case_id)
            raise _changed() from None

    def _merge(self, row: ReviewRow) -> None:
        with full_disk_named(_NOT_KEPT), Session(self._engine) as session, session.begin():
            session.merge(row)

    def _refuse_gone(self, case_id: str) -> None:
        with Session(self._engine) as session:
            if session.get(CaseRow, case_id) is None:
                raise InvalidInputError(f"the case {case_id} is gone from the store", status=404) from None

    def of_case(self, case_id: str) -> list[Review]:
        """The reviews of a case, the newest first."""
        query = select(ReviewRow).where(ReviewRow.case_id == case_id).order_by(ReviewRow.reviewed_ns.desc())
        with Session(self._engine) as session:
            return [_review(row) for row in session.scalars(query)]

    def of_app(self, app: str) -> dict[str, list[Review]]:
        """The reviews of an application's cases by case, the oldest case first, the newest review first."""
        query = (
            select(ReviewRow)
            .join(CaseRow, CaseRow.id == ReviewRow.case_id)
            .where(CaseRow.app == app)
            .order_by(CaseRow.created_ns, CaseRow.id, ReviewRow.reviewed_ns.desc())
        )
        found: dict[str, list[Review]] = {}
        with Session(self._engine) as session:
            for row in session.scalars(query):
                found.setdefault(row.case_id, []).append(_review(row))
        return found

    def lines(self, case_ids: Iterable[str]) -> dict[str, list[ReviewLine]]:
        """Who reviewed these cases, the newest first; cases without a review are left out."""
        columns = (ReviewRow.case_id, ReviewRow.reviewer, ReviewRow.reviewed_ns)
        query = select(*columns).where(ReviewRow.case_id.in_(list(case_ids))).order_by(ReviewRow.reviewed_ns.desc())
        found: dict[str, list[ReviewLine]] = {}
        with Session(self._engine) as session:
            for case_id, reviewer, reviewed_ns in session.execute(query):
                found.setdefault(case_id, []).append(ReviewLine(reviewer or None, iso_utc(reviewed_ns / 1e9)))
        return found

    def remove(self, case_id: str, reviewer: str | None) -> None:
        """Deletes a reviewer's review of a case; one that is gone already is no error."""
        with Session(self._engine) as session, session.begin():
            session.execute(delete(ReviewRow).where(*_of(case_id, reviewer or _NOBODY)))


def _of(case_id: str, reviewer: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """Whose row of which case."""
    return ReviewRow.case_id == case_id, ReviewRow.reviewer == reviewer


def _changed() -> InvalidInputError:
    return InvalidInputError("the reviewer has reviewed the case meanwhile; read that review first", status=412)


def _row(case_id: str, review: Review) -> ReviewRow:
    return ReviewRow(
        case_id=case_id,
        reviewer=review.reviewer or _NOBODY,
        reviewed_ns=review.reviewed_ns,
        verdicts={str(number): verdict for number, verdict in sorted(review.verdicts.items())},
        missed=[dict(one) for one in review.missed],
        note=review.note,
    )


def _review(row: ReviewRow) -> Review:
    return Review(
        reviewer=row.reviewer or None,
        reviewed_ns=row.reviewed_ns,
        verdicts={int(number): verdict for number, verdict in row.verdicts.items()},
        missed=tuple(row.missed),
        note=row.note,
    )
