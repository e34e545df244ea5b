"""The rows of a SQL query. Secrets in the database address are named there and kept in environment variables."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

from shared.errors import InvalidInputError

if TYPE_CHECKING:
    import polars
    from sqlalchemy import URL

_VARIABLE = r"\$[A-Z_][A-Z0-9_]*"
_PASSWORD = re.compile(r"://[^:/]*:([^@]*)@")
"""Where SQLAlchemy finds the password in an address."""
_PASSWORD_IN_QUERY = re.compile(r"(?:password|passwd|pwd)\s*=\s*([^&;]*)", re.IGNORECASE)


def refuse_password(url: str) -> None:
    """Raises InvalidInputError if the address contains a password, because a run's recipe.yaml records the address."""
    passwords = [match[1] for match in (_PASSWORD.search(url),) if match]
    passwords += _PASSWORD_IN_QUERY.findall(unquote(url.partition("?")[2]))
    if any(password and not re.fullmatch(_VARIABLE, password) for password in passwords):
        raise InvalidInputError(
            "data.url contains a password, and a run would record it in recipe.yaml; put the password into an "
            "environment variable and name that in capitals: postgresql+pg8000://reader:$DB_PASSWORD@host/prices"
        )


def read_query(url: str, query: str) -> polars.DataFrame:
    """The rows that ``query`` selects in the database ``url``, in which $NAME stands for an environment variable.

    Raises InvalidInputError if a package or variable is missing, and if the query fails.
    """
    try:
        import polars as pl
        from sqlalchemy import create_engine
        from sqlalchemy.exc import SQLAlchemyError
    except ModuleNotFoundError as error:
        raise InvalidInputError(f"a SQL query needs the package {error.name}; install trivium[serve]") from error
    try:
        engine = create_engine(with_environment(url))
        try:
            with engine.connect() as connection:
                return pl.read_database(query, connection, infer_schema_length=None)
        finally:
            engine.dispose()
    except AttributeError as error:  # raised by polars for a statement that returns no rows
        raise InvalidInputError("the query selects nothing; give a SELECT") from error
    except (SQLAlchemyError, pl.exceptions.PolarsError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise InvalidInputError(f"the query failed: {reason}") from error


def with_environment(url: str) -> URL:
    """The address with the variables' values. A value within one part of the address may contain any character."""
    from sqlalchemy import make_url

    if re.fullmatch(_VARIABLE, url):
        return make_url(_expand_variables(url))
    address = make_url(url)
    query = {
        name: _expand_variables(value) if isinstance(value, str) else tuple(_expand_variables(item) for item in value)
        for name, value in address.query.items()
    }
    return address.set(
        username=_expand_variables(address.username or "") or None,
        password=_expand_variables(str(address.password or "")) or None,
        host=_expand_variables(address.host or "") or None,
        database=_expand_variables(address.database or "") or None,
        query=query,
    )


def _expand_variables(text: str) -> str:
    """``text`` with each $NAME replaced from the environment. Raises InvalidInputError if a variable is not set."""

    def value(match: re.Match[str]) -> str:
        name = match[0][1:]
        if name not in os.environ:
            raise InvalidInputError(f"data.url names ${name}, but the environment variable {name} is not set; set it")
        return os.environ[name]

    return re.sub(_VARIABLE, value, text)
