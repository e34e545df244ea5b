"""The tables of the store."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, BigInteger, Engine, Index, String, create_engine, event, inspect, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shared.errors import InvalidInputError


class Base(DeclarativeBase):
    """The base of all tables, which says how Python types are kept."""

    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON}  # noqa: RUF012 - SQLAlchemy reads it from the class


class CaseRow(Base):
    """One request that a person may look at again. Its files lie beside the database, in ``cases/<id>``."""

    __tablename__ = "cases"
    __table_args__ = (Index("cases_by_app_and_time", "app", "created_ns"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    app: Mapped[str] = mapped_column(String(64))
    created_ns: Mapped[int] = mapped_column(BigInteger)
    interface: Mapped[str] = mapped_column("door", String(32))  # the column's name in stores made before
    inputs: Mapped[list[Any]]
    inputs_sha256: Mapped[str] = mapped_column(String(64))
    options: Mapped[dict[str, Any]]
    artifact_name: Mapped[str] = mapped_column(String(128))
    artifact_version: Mapped[int]
    result: Mapped[dict[str, Any]]
    files: Mapped[list[Any]]


def connect(address: str) -> Engine:
    """An engine for a database's address whose tables exist; refuses one that cannot be reached or has other tables.

    SQLite journals ahead, so that readers and the writer do not wait. PostgreSQL is reached through pg8000.
    """
    try:
        url = make_url(address)
        if url.drivername in ("postgresql", "postgres"):
            url = url.set(drivername="postgresql+pg8000")
        engine = create_engine(url)
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise InvalidInputError(
            f"TRIVIUM_STORE_URL is no address of a database that SQLAlchemy knows: {error}"
        ) from error
    except ImportError as error:
        extra = "trivium[postgres]" if url.drivername == "postgresql+pg8000" else error.name
        raise InvalidInputError(f"the store's database needs the package {error.name}; install {extra}") from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _configure_sqlite)
    try:
        Base.metadata.create_all(engine)
    except SQLAlchemyError as error:
        engine.dispose()
        reason = getattr(error, "orig", None) or error
        raise InvalidInputError(f"the store's database {url.render_as_string()} cannot be used: {reason}") from error
    try:
        _check_columns(engine, url.render_as_string())
    except InvalidInputError:
        engine.dispose()
        raise
    return engine


def _check_columns(engine: Engine, address: str) -> None:
    """Refuses a database whose tables have not the columns that this version reads and writes."""
    for table in Base.metadata.sorted_tables:
        known = {column.name for column in table.columns}
        present = inspect(engine).get_columns(table.name)
        missing = known - {column["name"] for column in present}
        required = {column["name"] for column in present if not column["nullable"] and column["default"] is None}
        if differing := sorted(missing | (required - known)):
            raise InvalidInputError(
                f"the store's database {address} was made by another version of Trivium: its table {table.name} "
                f"differs in {', '.join(differing)}; name another folder in TRIVIUM_STORE, or use that version"
            )


def sqlite_url(path: Path) -> str:
    """The address of an SQLite file."""
    return f"sqlite:///{path.resolve().as_posix()}"


def _configure_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # Not every build of SQLite overwrites what is deleted unless it is told to.
    for pragma in (
        "journal_mode = WAL",
        "synchronous = NORMAL",
        "busy_timeout = 10000",
        "foreign_keys = ON",
        "secure_delete = ON",
    ):
        connection.execute(f"PRAGMA {pragma}")
