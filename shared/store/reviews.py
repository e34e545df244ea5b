"""The reviews in the store's database: of each case one of each reviewer, which goes with the case."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sqlalchemy import Engine, delete, select
from sqlalchemy.exc import IntegrityError, ProgrammingError
from sqlalchemy.orm import Session

from shared.errors import InvalidInputError
from shared.review import Review
from shared.store.disk import full_disk_named
from shared.store.tables import CaseRow, ReviewRow
from shared.utc_time import iso_utc

_NOBODY = ""
"""The reviewer in the table where nobody was named: a primary key takes no null."""


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
        reviewer = review.reviewer or _NOBODY
        row = ReviewRow(
            case_id=case_id,
            reviewer=reviewer,
            reviewed_ns=review.reviewed_ns,
            verdicts={str(number): verdict for number, verdict in sorted(review.verdicts.items())},
            missed=[dict(one) for one in review.missed],
            note=review.note,
        )
        try:
            self._merge(row)
        except (IntegrityError, ProgrammingError):  # the latter is pg8000's word for a foreign key without its row
            with Session(self._engine) as session:
                if session.get(CaseRow, case_id) is None:
                    raise InvalidInputError(f"the case {case_id} is gone from the store", status=404) from None
            self._merge(row)  # the reviewer's first review came at the same moment, from elsewhere

    def _merge(self, row: ReviewRow) -> None:
        with full_disk_named("the review is not kept"), Session(self._engine) as session, session.begin():
            session.merge(row)

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
        one = (ReviewRow.case_id == case_id, ReviewRow.reviewer == (reviewer or _NOBODY))
        with Session(self._engine) as session, session.begin():
            session.execute(delete(ReviewRow).where(*one))


def _review(row: ReviewRow) -> Review:
    return Review(
        reviewer=row.reviewer or None,
        reviewed_ns=row.reviewed_ns,
        verdicts={int(number): verdict for number, verdict in row.verdicts.items()},
        missed=tuple(row.missed),
        note=row.note,
    )
