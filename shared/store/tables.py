"""The tables of the store. A change here needs a migration in ``migrations/versions``."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The base of all tables, which maps Python types to column types."""

    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON}  # noqa: RUF012 - SQLAlchemy reads it from the class


class CaseRow(Base):
    """A request that a person can open again. Its files, including the result, are in ``cases/<id>``.

    ``group`` is the group of the key that submitted it; null for a key without a group.
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
    """A reviewer's review of a case; ``reviewer`` is empty if no name was given. It is deleted with the case."""

    __tablename__ = "reviews"

    case_id: Mapped[str] = mapped_column(String(32), ForeignKey("cases.id", ondelete="CASCADE"), primary_key=True)
    reviewer: Mapped[str] = mapped_column(String(64), primary_key=True)
    reviewed_ns: Mapped[int] = mapped_column(BigInteger)
    verdicts: Mapped[dict[str, Any]]
    missed: Mapped[list[Any]]
    note: Mapped[str] = mapped_column(Text)


class JobRow(Base):
    """A request that is answered later. Until then its files are in ``jobs/<id>``, and their names in ``files``.

    ``state`` is queued, running, done, failed or cancelled; ``stage`` describes the current step. ``server`` is the
    server that runs the job; ``changed_ns`` is the time of its last heartbeat. ``problem`` and ``status`` say why the
    job failed. ``tell_ns`` is the time to notify the webhook that the job has ended; null if it was notified or there
    is no webhook. ``group`` is as in ``CaseRow``.
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
    stage: Mapped[str] = mapped_column(Text)
    server: Mapped[str | None] = mapped_column(String(64))
    attempts: Mapped[int]
    case_id: Mapped[str | None] = mapped_column(String(32))
    problem: Mapped[str | None] = mapped_column(Text)
    status: Mapped[int | None]
    tell_ns: Mapped[int | None] = mapped_column(BigInteger)
    group: Mapped[str | None] = mapped_column(String(64))


class PromotionRow(Base):
    """A promotion of a version of a model. The newest one that was not rolled back is in force."""

    __tablename__ = "promotions"
    __table_args__ = (Index("promotions_by_model_and_time", "model", "promoted_ns"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    model: Mapped[str] = mapped_column(String(128))
    version: Mapped[int]
    promoted_ns: Mapped[int] = mapped_column(BigInteger)
    rolled_back: Mapped[bool]


class RetiredRow(Base):
    """A version of a model that an operator retired: it has no workers, and a rollback does not return to it."""

    __tablename__ = "retired_versions"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    model: Mapped[str] = mapped_column(String(128))
    version: Mapped[int]
    retired_ns: Mapped[int] = mapped_column(BigInteger)


class KeyRow(Base):
    """An API key of the server: ``digest`` is its SHA-256, ``role`` is user or operator.

    A key with a ``group`` sees only the cases and jobs of keys in that group.
    """

    __tablename__ = "keys"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    role: Mapped[str] = mapped_column(String(16))
    digest: Mapped[str] = mapped_column(String(64))
    created_ns: Mapped[int] = mapped_column(BigInteger)
    group: Mapped[str | None] = mapped_column(String(64))
