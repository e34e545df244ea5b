"""The rows of a SQL query. What is secret in the address of a data base is named there and kept in the environment."""

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
"""Where SQLAlchemy looks for a password."""
_PASSWORD_IN_QUERY = re.compile(r"(?:password|passwd|pwd)\s*=\s*([^&;]*)", re.IGNORECASE)


def refuse_password(url: str) -> None:
    """Refuses an address with a password in it: a run's recipe.yaml records the address."""
    written = [found[1] for found in (_PASSWORD.search(url),) if found]
    written += _PASSWORD_IN_QUERY.findall(unquote(url.partition("?")[2]))
    if any(one and not re.fullmatch(_VARIABLE, one) for one in written):
        raise InvalidInputError(
            "data.url has a password in it, and a run records it in recipe.yaml; put the password into the environment "
            "and name the variable in capitals: postgresql+pg8000://reader:$DB_PASSWORD@host/prices"
        )


def read_query(url: str, query: str) -> polars.DataFrame:
    """The rows that ``query`` selects in the data base ``url``, in which $NAME stands for a variable."""
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
    except AttributeError as error:  # polars, of a statement that has no rows
        raise InvalidInputError("the query selects nothing; give a SELECT") from error
    except (SQLAlchemyError, pl.exceptions.PolarsError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise InvalidInputError(f"the query failed: {reason}") from error


def with_environment(url: str) -> URL:
    """The address with the variables' values; one that stands for a part of it may hold any character."""
    from sqlalchemy import make_url

    if re.fullmatch(_VARIABLE, url):
        return make_url(_replaced(url))
    made = make_url(url)
    query = {
        name: _replaced(value) if isinstance(value, str) else tuple(_replaced(one) for one in value)
        for name, value in made.query.items()
    }
    return made.set(
        username=_replaced(made.username or "") or None,
        password=_replaced(str(made.password or "")) or None,
        host=_replaced(made.host or "") or None,
        database=_replaced(made.database or "") or None,
        query=query,
    )


def _replaced(text: str) -> str:
    """``text`` with each $NAME replaced from the environment; refuses one that is not there."""

    def value(found: re.Match[str]) -> str:
        name = found[0][1:]
        if name not in os.environ:
            raise InvalidInputError(f"data.url names ${name}, and the environment has no {name}; set it")
        return os.environ[name]

    return re.sub(_VARIABLE, value, text)
