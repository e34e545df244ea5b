"""Parquet files to ``Series``. How much there is to read is looked up in the metadata before anything is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apps.finance.adapters.columns import called
from apps.finance.adapters.layout import MOST_COLUMNS
from apps.finance.adapters.options import NOTHING_SAID, TableOptions
from apps.finance.adapters.table import Contents, only, to_contents
from apps.finance.types import Series
from shared.errors import InvalidInputError

MOST_CELLS = 100_000_000


def read_parquet_contents(path: Path, options: TableOptions = NOTHING_SAID) -> Contents:
    """All series in a Parquet file; see ``to_contents`` for what is understood and refused.

    Where that is too much and time, value and series are named, only these columns are read.
    """
    import polars as pl
    import pyarrow.parquet

    if not path.is_file():
        raise InvalidInputError(f"{path.name} does not exist")
    try:
        metadata = pyarrow.parquet.read_metadata(path)
        labels = _columns_to_read(path.name, metadata, options)
        frame = pl.read_parquet(path, columns=labels)
    except (pl.exceptions.PolarsError, pyarrow.ArrowException, OSError) as error:
        raise InvalidInputError(
            f"{path.name} is not a readable Parquet file ({error}); write it again, or hand in CSV"
        ) from error
    return to_contents(frame, name=path.name, options=options)


def read_parquet(path: Path, options: TableOptions = NOTHING_SAID) -> Series:
    """The one series in a Parquet file; refuses several."""
    return only(read_parquet_contents(path, options), path.name)


def _columns_to_read(name: str, metadata: Any, options: TableOptions) -> list[str] | None:
    """The columns that are read, None for all; refuses more than fits into memory."""
    there = [metadata.schema.column(index).path.split(".")[0] for index in range(metadata.num_columns)]
    wanted = options.columns()
    if len(there) <= MOST_COLUMNS and metadata.num_rows * len(there) <= MOST_CELLS:
        return None
    chosen = [called(one, there) for one in wanted] if wanted is not None else None
    labels = None if chosen is None or None in chosen else [one for one in chosen if one is not None]
    width = len(there) if labels is None else len(labels)
    if width > MOST_COLUMNS:
        raise InvalidInputError(
            f"{name} has {width} columns, and {MOST_COLUMNS} can be read; name those that matter with the options "
            "time, value and series"
        )
    if metadata.num_rows * width > MOST_CELLS:
        raise InvalidInputError(
            f"{name} has {metadata.num_rows} rows of {width} columns, and {MOST_CELLS} cells can be read at a time; "
            "split it by time, or name the columns that matter with the options time, value and series"
        )
    return labels
