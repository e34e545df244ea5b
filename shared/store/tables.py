"""The tables of the store. A change here comes with a step in ``migrations/versions``."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The base of all tables, which says how Python types are kept."""

    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON}  # noqa: RUF012 - SQLAlchemy reads it from the class


class CaseRow(Base):
    """One request that a person may look at again. Its files, the result among them, lie in ``cases/<id>``.

    ``group`` is that of the key that handed it in, null for none.
    """

    __tablename__ = "cases"
    __table_args__ = (
        Index("cases_by_app_and_time", "app", "created_ns"),
        Index("cases_by_app_group_and_time", "app", "group", "created_ns"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    app: Mapped[str] = mapped_column(String(64))
    created_ns: Mapped[int] = mapped_column(BigInteger)
    interface: Mapped[str] = mapped_column(String(32))
    inputs: Mapped[list[Any]]
    inputs_sha256: Mapped[str] = mapped_column(String(64))
    options: Mapped[dict[str, Any]]
    artifact_name: Mapped[str] = mapped_column(String(128))
    artifact_version: Mapped[int]
    files: Mapped[list[Any]]
    bytes: Mapped[int] = mapped_column(BigInteger, server_default="0")
    group: Mapped[str | None] = mapped_column(String(64))


class ReviewRow(Base):
    """What a reviewer says of a case; ``reviewer`` is empty where nobody was named. Deleted with the case."""

    __tablename__ = "reviews"

    case_id: Mapped[str] = mapped_column(String(32), ForeignKey("cases.id", ondelete="CASCADE"), primary_key=True)
    reviewer: Mapped[str] = mapped_column(String(64), primary_key=True)
    reviewed_ns: Mapped[int] = mapped_column(BigInteger)
    verdicts: Mapped[dict[str, Any]]
    missed: Mapped[list[Any]]
    note: Mapped[str] = mapped_column(Text)


class JobRow(Base):
    """A request that is answered later. Its files lie in ``jobs/<id>`` until it is, and their names in ``files``.

    ``state`` is queued, running, done, failed or cancelled; ``stage`` what is being done; ``server`` who runs it, and
    has said at ``changed_ns`` that it still does. ``problem`` and ``status`` say why it failed. ``tell_ns`` is when the
    webhook is to be told that it has ended; null where it was, or where there is none. ``group`` is as in ``CaseRow``.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index("jobs_by_state_and_time", "state", "created_ns"),
        Index("jobs_by_time_to_tell", "tell_ns"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    app: Mapped[str] = mapped_column(String(64))
    created_ns: Mapped[int] = mapped_column(BigInteger)
    changed_ns: Mapped[int] = mapped_column(BigInteger)
    interface: Mapped[str] = mapped_column(String(32))
    files: Mapped[list[Any]]
    options: Mapped[dict[str, Any]]
    sample: Mapped[str | None] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    stage: Mapped[str] = mapped_column(String(32))
    server: Mapped[str | None] = mapped_column(String(64))
    attempts: Mapped[int]
    case_id: Mapped[str | None] = mapped_column(String(32))
    problem: Mapped[str | None] = mapped_column(Text)
    status: Mapped[int | None]
    tell_ns: Mapped[int | None] = mapped_column(BigInteger)
    group: Mapped[str | None] = mapped_column(String(64))


class PromotionRow(Base):
    """A version of a model that was made the live one; the newest that was not rolled back is."""

    __tablename__ = "promotions"
    __table_args__ = (Index("promotions_by_model_and_time", "model", "promoted_ns"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    model: Mapped[str] = mapped_column(String(128))
    version: Mapped[int]
    promoted_ns: Mapped[int] = mapped_column(BigInteger)
    rolled_back: Mapped[bool]


class RetiredRow(Base):
    """A version of a model that an operator retired: it has no workers, and is not rolled back to."""

    __tablename__ = "retired_versions"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    model: Mapped[str] = mapped_column(String(128))
    version: Mapped[int]
    retired_ns: Mapped[int] = mapped_column(BigInteger)


class KeyRow(Base):
    """A key that lets its holder use the server: the SHA-256 of it, and its ``role``, user or operator.

    With a ``group`` it sees only the cases and jobs of the keys of that group.
    """

    __tablename__ = "keys"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    role: Mapped[str] = mapped_column(String(16))
    digest: Mapped[str] = mapped_column(String(64))
    created_ns: Mapped[int] = mapped_column(BigInteger)
    group: Mapped[str | None] = mapped_column(String(64))
