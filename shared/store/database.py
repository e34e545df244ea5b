"""The database of a store: SQLite or PostgreSQL, brought to this version's tables when it is opened."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    SQLAlchemyError,
)

from shared.errors import InvalidInputError
from shared.store.disk import is_disk_full
from shared.store.tables import Base

_MIGRATIONS = Path(__file__).parent / "migrations"
_FIRST = "0001"
_BUSY_TIMEOUT = "busy_timeout = 10000"
_GONE_STATES = ("08", "53", "57")
"""Classes of PostgreSQL's SQLSTATE (its appendix A): no connection, no resources, shut down or starting."""
_LOCK = 7_481_301
"""Whoever migrates a PostgreSQL database holds this advisory lock: several servers may start on it at once."""


def connect(address: str, elsewhere: str) -> Engine:
    """An engine for a database's address, migrated to this version; refuses one that cannot be reached or is another's.

    ``elsewhere`` says, in that refusal, where another is named: "name another folder in TRIVIUM_STORE".
    SQLite journals ahead, so that readers and the writer do not wait. PostgreSQL is reached through pg8000.
    """
    try:
        url = make_url(address)
        if url.drivername in ("postgresql", "postgres"):
            url = url.set(drivername="postgresql+pg8000")
        # A database that was started again has ended the connections that are held. Errors go to the log, and without
        # what was to be written: names of files may be those of patients.
        engine = create_engine(url, pool_pre_ping=url.get_backend_name() != "sqlite", hide_parameters=True)
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise InvalidInputError(
            f"TRIVIUM_STORE_URL is no address of a database that SQLAlchemy knows: {error}"
        ) from error
    except ImportError as error:
        extra = "trivium[postgres]" if url.drivername == "postgresql+pg8000" else error.name
        raise InvalidInputError(f"the store's database needs the package {error.name}; install {extra}") from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _configure_sqlite)
    shown = url.render_as_string()
    try:
        with engine.begin() as connection:
            _migrate(connection, shown, elsewhere)
    except SQLAlchemyError as error:
        engine.dispose()
        reason = getattr(error, "orig", None) or error
        raise InvalidInputError(f"the store's database {shown} cannot be used: {reason}") from error
    except InvalidInputError:
        engine.dispose()
        raise
    return engine


def empty_journal(engine: Engine) -> None:
    """Empties SQLite's write-ahead log, which would hold what was deleted until other rows come in its place.

    It waits for nobody: where somebody reads or writes, the log is left as it is until the next time.
    """
    if engine.dialect.name != "sqlite":
        return
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout = 0")
        try:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            connection.exec_driver_sql(f"PRAGMA {_BUSY_TIMEOUT}")


def is_database_gone(error: BaseException) -> bool:
    """Whether an error is that a database cannot be reached, or ended while it was asked.

    pg8000 raises some of its own, and the socket's, past SQLAlchemy where a connection ends in the middle. A full disk,
    of which SQLite says so, is another matter.
    """
    if is_disk_full(error):
        return False
    if isinstance(error, OperationalError | InterfaceError | ConnectionError):
        return True
    cause = error.orig if isinstance(error, DBAPIError) else error
    if type(cause).__module__.partition(".")[0] != "pg8000":
        return False
    stated = cause.args[0] if cause is not None and cause.args else None
    return str(stated.get("C", "")).startswith(_GONE_STATES) if isinstance(stated, dict) else True


def sqlite_url(path: Path) -> str:
    """The address of an SQLite file."""
    return f"sqlite:///{path.resolve().as_posix()}"


def _migrate(connection: Connection, shown: str, elsewhere: str) -> None:
    """Brings the tables to this version, from none, from those of an earlier one, or from the first release's."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    present = MigrationContext.configure(connection).get_current_revision()
    if present is not None and present not in known:
        raise InvalidInputError(
            f"the store's database {shown} was made by a newer version of Trivium (tables {present}); use that "
            f"version, or {elsewhere}"
        )
    if present is None and inspect(connection).has_table("cases"):
        _check_first_release(connection, shown, elsewhere)
        command.stamp(config, _FIRST)
    command.upgrade(config, "head")


def _check_first_release(connection: Connection, shown: str, elsewhere: str) -> None:
    """Refuses tables without a version that are not those of the first release, which stated none."""
    first = {column.name for column in Base.metadata.tables["cases"].columns} - {"bytes", "interface", "group"}
    known = first | {"door", "result"}
    present = inspect(connection).get_columns("cases")
    missing = known - {column["name"] for column in present}
    required = {column["name"] for column in present if not column["nullable"] and column["default"] is None}
    if differing := sorted(missing | (required - known)):
        raise InvalidInputError(
            f"the store's database {shown} was made by another version of Trivium: its table cases "
            f"differs in {', '.join(differing)}; {elsewhere}, or use that version"
        )


def _configure_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # Not every build of SQLite overwrites what is deleted unless it is told to.
    for pragma in (
        "journal_mode = WAL",
        "synchronous = NORMAL",
        _BUSY_TIMEOUT,
        "foreign_keys = ON",
        "secure_delete = ON",
    ):
        connection.execute(f"PRAGMA {pragma}")
