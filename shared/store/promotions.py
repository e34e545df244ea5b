"""Which version of each model is the live one, and which were before: what all servers on a store agree on."""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection
from typing import Literal

from sqlalchemy import Engine, Select, delete, select, update
from sqlalchemy.orm import Session

from shared.store.tables import PromotionRow, RetiredRow

Stage = Literal["candidate", "live", "retired"]


class Promotions:
    """The promotions in the store's database. A model of which none is known has its newest version live."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def live(self) -> dict[str, int]:
        """The live version of each model of which one was promoted."""
        with Session(self._engine) as session:
            rows = session.scalars(_in_force().order_by(PromotionRow.promoted_ns)).all()
        return {row.model: row.version for row in rows}

    def before(self, model: str) -> int | None:
        """The version that rolling a model back makes live again, or None; a retired one is not."""
        with Session(self._engine) as session:
            found = session.scalars(_in_force(model).order_by(PromotionRow.promoted_ns.desc()).limit(2)).all()
            retired = session.scalars(_retired(model)).all()
        return found[1].version if len(found) == 2 and found[1].version not in retired else None

    def promote(self, model: str, version: int, instead_of: int) -> None:
        """Makes a version live; ``instead_of`` is the one that was, so that the first promotion can be rolled back."""
        with Session(self._engine) as session, session.begin():
            session.execute(delete(RetiredRow).where(RetiredRow.model == model, RetiredRow.version == version))
            last = session.scalars(_in_force(model).order_by(PromotionRow.promoted_ns.desc()).limit(1)).first()
            versions = [version] if last is not None else [instead_of, version]
            for number, one in enumerate(versions):
                if last is None or last.version != one:
                    row = PromotionRow(
                        id=uuid.uuid4().hex,
                        model=model,
                        version=one,
                        promoted_ns=time.time_ns() + number,
                        rolled_back=False,
                    )
                    session.add(row)
                    last = row

    def roll_back(self, model: str) -> None:
        """Takes the last promotion of a model back."""
        newest = _in_force(model).order_by(PromotionRow.promoted_ns.desc()).limit(1)
        with Session(self._engine) as session, session.begin():
            if (row := session.scalars(newest).first()) is not None:
                session.execute(update(PromotionRow).where(PromotionRow.id == row.id).values(rolled_back=True))

    def retire(self, model: str, version: int) -> None:
        """Takes a version out of use until it is promoted."""
        with Session(self._engine) as session, session.begin():
            if version not in session.scalars(_retired(model)).all():
                row = RetiredRow(id=uuid.uuid4().hex, model=model, version=version, retired_ns=time.time_ns())
                session.add(row)

    def retired(self) -> set[tuple[str, int]]:
        """The models and versions that are out of use."""
        with Session(self._engine) as session:
            return {(row.model, row.version) for row in session.scalars(select(RetiredRow))}

    def stages(self, model: str, versions: Collection[int], live: Collection[int]) -> dict[int, Stage]:
        """The stage of each version: what was live, is older than what is live, or was retired, is retired."""
        with Session(self._engine) as session:
            used = set(session.scalars(select(PromotionRow.version).where(PromotionRow.model == model)))
            used |= set(session.scalars(_retired(model)))

        def stage(version: int) -> Stage:
            if version in live:
                return "live"
            return "retired" if version in used or version < max(live, default=0) else "candidate"

        return {version: stage(version) for version in versions}


def _in_force(model: str | None = None) -> Select[PromotionRow]:
    query = select(PromotionRow).where(PromotionRow.rolled_back.is_(False))
    return query if model is None else query.where(PromotionRow.model == model)


def _retired(model: str) -> Select[int]:
    return select(RetiredRow.version).where(RetiredRow.model == model)
