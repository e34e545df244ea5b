"""The database of a store: SQLite or PostgreSQL, migrated to this version's tables when it is opened."""

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
_FIRST_REVISION = "0001"
_BUSY_TIMEOUT = "busy_timeout = 10000"
_UNAVAILABLE_STATES = ("08", "53", "57")
"""Classes of PostgreSQL's SQLSTATE (its appendix A): connection exception, insufficient resources, and operator
intervention, such as shutting down or starting up."""
_MIGRATION_LOCK = 7_481_301
"""Advisory lock during the migration of a PostgreSQL database, because several servers may start on it at once."""


def connect(address: str, alternative: str) -> Engine:
    """An engine for the database at a URL, migrated to this version.

    SQLite uses its write-ahead log, so that readers and the writer do not wait for each other. The driver for
    PostgreSQL is pg8000. Raises ``InvalidInputError`` if the database cannot be reached or belongs to another version;
    the message suggests the ``alternative``, such as "set TRIVIUM_STORE to another folder".
    """
    try:
        url = make_url(address)
        if url.drivername in ("postgresql", "postgres"):
            url = url.set(drivername="postgresql+pg8000")
        # A restarted database has closed the pooled connections. Errors are logged without the parameters of the
        # statement, because names of files may be those of patients.
        engine = create_engine(url, pool_pre_ping=url.get_backend_name() != "sqlite", hide_parameters=True)
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise InvalidInputError(
            f"TRIVIUM_STORE_URL is not the URL of a database that SQLAlchemy supports: {error}"
        ) from error
    except ImportError as error:
        package = "trivium[postgres]" if url.drivername == "postgresql+pg8000" else error.name
        raise InvalidInputError(f"the store's database needs the package {error.name}; install {package}") from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _configure_sqlite)
    masked_url = url.render_as_string()
    try:
        with engine.begin() as connection:
            _migrate(connection, masked_url, alternative)
    except SQLAlchemyError as error:
        engine.dispose()
        local = engine.dialect.name == "sqlite"
        remedy = "check its permissions and the free space on its disk" if local else "check that it runs and its URL"
        reason = f"the store's database {masked_url} cannot be used: {reason_of(error)}; {remedy}, or {alternative}"
        raise InvalidInputError(reason) from error
    except InvalidInputError:
        engine.dispose()
        raise
    return engine


def empty_journal(engine: Engine) -> None:
    """Truncates SQLite's write-ahead log, which would otherwise contain deleted rows until others overwrite them.

    It does not wait for other connections: if one reads or writes, the log stays as it is until the next call.
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
    """Whether an error means that the database cannot be reached, or stopped during a query.

    When a connection breaks, some errors of pg8000 and of the socket are not wrapped by SQLAlchemy. A full disk, which
    SQLite also reports as an ``OperationalError``, does not count.
    """
    if is_disk_full(error):
        return False
    if isinstance(error, OperationalError | InterfaceError | ConnectionError):
        return True
    cause = error.orig if isinstance(error, DBAPIError) else error
    if type(cause).__module__.partition(".")[0] != "pg8000":
        return False
    fields = cause.args[0] if cause is not None and cause.args else None
    return str(fields.get("C", "")).startswith(_UNAVAILABLE_STATES) if isinstance(fields, dict) else True


def reason_of(error: BaseException) -> str:
    """The message of an error of the database or its driver, without SQLAlchemy's additions, in one line."""
    cause = getattr(error, "orig", None) or error
    fields = cause.args[0] if cause.args else None
    # pg8000 raises with PostgreSQL's fields of an error (protocol, section 55.8); M is the message.
    return " ".join(str(fields["M"] if isinstance(fields, dict) and "M" in fields else cause).split())


def sqlite_url(path: Path) -> str:
    """The database URL of an SQLite file."""
    return f"sqlite:///{path.resolve().as_posix()}"


def _migrate(connection: Connection, masked_url: str, alternative: str) -> None:
    """Migrates the tables to this version: from an empty database, an earlier version or the first release."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    present = MigrationContext.configure(connection).get_current_revision()
    if present is not None and present not in known:
        raise InvalidInputError(
            f"the store's database {masked_url} was created by a newer version of Trivium (tables {present}); use that "
            f"version, or {alternative}"
        )
    if present is None and inspect(connection).has_table("cases"):
        _check_first_release(connection, masked_url, alternative)
        command.stamp(config, _FIRST_REVISION)
    command.upgrade(config, "head")


def _check_first_release(connection: Connection, masked_url: str, alternative: str) -> None:
    """Raises ``InvalidInputError`` if tables without a version are not those of the first release, which had none."""
    first = {column.name for column in Base.metadata.tables["cases"].columns} - {"bytes", "interface", "group"}
    known = first | {"door", "result"}
    present = inspect(connection).get_columns("cases")
    missing = known - {column["name"] for column in present}
    required = {column["name"] for column in present if not column["nullable"] and column["default"] is None}
    if differing := sorted(missing | (required - known)):
        raise InvalidInputError(
            f"the store's database {masked_url} was created by another version of Trivium: its table cases "
            f"differs in {', '.join(differing)}; {alternative}, or use that version"
        )


def _configure_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # Not every build of SQLite overwrites deleted content by default: hence secure_delete.
    for pragma in (
        "journal_mode = WAL",
        "synchronous = NORMAL",
        _BUSY_TIMEOUT,
        "foreign_keys = ON",
        "secure_delete = ON",
    ):
        connection.execute(f"PRAGMA {pragma}")
