"""Parquet files to ``Series``."""

from __future__ import annotations

from pathlib import Path

from apps.finance.adapters.table import Contents, only, to_contents
from apps.finance.types import Series
from shared.errors import InvalidInputError


def read_parquet_contents(path: Path, *, column: str | None = None) -> Contents:
    """All series in a Parquet file; see ``to_contents`` for what is understood and refused."""
    import polars as pl

    if not path.is_file():
        raise InvalidInputError(f"{path.name} does not exist")
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InvalidInputError(
            f"{path.name} is not a readable Parquet file ({error}); write it again, or hand in CSV"
        ) from error
    return to_contents(frame, name=path.name, column=column)


def read_parquet(path: Path, *, column: str | None = None) -> Series:
    """The one series in a Parquet file; refuses several."""
    return only(read_parquet_contents(path, column=column), path.name)
