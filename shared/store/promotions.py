"""The live version of each model and the earlier ones, shared by all servers on a store."""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection
from typing import Literal

from sqlalchemy import Engine, Select, delete, select, update
from sqlalchemy.orm import Session
from typing_extensions import TypeAliasType

from shared.store.tables import PromotionRow, RetiredRow

VersionStage = TypeAliasType("VersionStage", Literal["candidate", "live", "retired"])


class Promotions:
    """The promotions in the store's database. If a model was never promoted, its newest version is live."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def live(self) -> dict[str, int]:
        """The live version of each model that has a promotion."""
        with Session(self._engine) as session:
            rows = session.scalars(_not_rolled_back().order_by(PromotionRow.promoted_ns)).all()
        return {row.model: row.version for row in rows}

    def previous(self, model: str) -> int | None:
        """The version that a rollback of the model makes live again; None if there is none or it is retired."""
        with Session(self._engine) as session:
            newest = session.scalars(_not_rolled_back(model).order_by(PromotionRow.promoted_ns.desc()).limit(2)).all()
            retired = session.scalars(_retired(model)).all()
        return newest[1].version if len(newest) == 2 and newest[1].version not in retired else None

    def promote(self, model: str, version: int, previous: int) -> None:
        """Makes a version live. ``previous`` was live until now: a first promotion records it for a rollback."""
        with Session(self._engine) as session, session.begin():
            session.execute(delete(RetiredRow).where(RetiredRow.model == model, RetiredRow.version == version))
            last = session.scalars(_not_rolled_back(model).order_by(PromotionRow.promoted_ns.desc()).limit(1)).first()
            versions = [version] if last is not None else [previous, version]
            for number, promoted in enumerate(versions):
                if last is None or last.version != promoted:
                    row = PromotionRow(
                        id=uuid.uuid4().hex,
                        model=model,
                        version=promoted,
                        promoted_ns=time.time_ns() + number,
                        rolled_back=False,
                    )
                    session.add(row)
                    last = row

    def roll_back(self, model: str) -> None:
        """Undoes the last promotion of a model."""
        newest = _not_rolled_back(model).order_by(PromotionRow.promoted_ns.desc()).limit(1)
        with Session(self._engine) as session, session.begin():
            if (row := session.scalars(newest).first()) is not None:
                session.execute(update(PromotionRow).where(PromotionRow.id == row.id).values(rolled_back=True))

    def retire(self, model: str, version: int) -> None:
        """Retires a version until it is promoted again."""
        with Session(self._engine) as session, session.begin():
            if version not in session.scalars(_retired(model)).all():
                row = RetiredRow(id=uuid.uuid4().hex, model=model, version=version, retired_ns=time.time_ns())
                session.add(row)

    def retired(self) -> set[tuple[str, int]]:
        """The retired versions, as pairs of model and version."""
        with Session(self._engine) as session:
            return {(row.model, row.version) for row in session.scalars(select(RetiredRow))}

    def stages(self, model: str, versions: Collection[int], live: Collection[int]) -> dict[int, VersionStage]:
        """The stage of each version.

        A version that is not live is retired if it was live before, is older than the newest live one, or was retired
        by an operator; otherwise it is a candidate.
        """
        with Session(self._engine) as session:
            promoted_or_retired = set(session.scalars(select(PromotionRow.version).where(PromotionRow.model == model)))
            promoted_or_retired |= set(session.scalars(_retired(model)))

        def stage(version: int) -> VersionStage:
            if version in live:
                return "live"
            return "retired" if version in promoted_or_retired or version < max(live, default=0) else "candidate"

        return {version: stage(version) for version in versions}


def _not_rolled_back(model: str | None = None) -> Select[PromotionRow]:
    query = select(PromotionRow).where(PromotionRow.rolled_back.is_(False))
    return query if model is None else query.where(PromotionRow.model == model)


def _retired(model: str) -> Select[int]:
    return select(RetiredRow.version).where(RetiredRow.model == model)
