"""The readers of the finance application: one file a format, and this table of the endings of file names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from apps.finance.adapters.csv import read_csv_contents
from apps.finance.adapters.options import NOTHING_SAID, TableOptions
from apps.finance.adapters.parquet import read_parquet_contents
from apps.finance.adapters.table import Contents
from shared.errors import InvalidInputError

READERS: dict[str, Callable[[Path, TableOptions], Contents]] = {
    ".csv": read_csv_contents,
    ".txt": read_csv_contents,
    ".tsv": read_csv_contents,
    "": read_csv_contents,
    ".parquet": read_parquet_contents,
    ".pq": read_parquet_contents,
}


def read_contents(path: Path, options: TableOptions = NOTHING_SAID) -> Contents:
    """All series in a file, by the reader of its ending."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InvalidInputError(f"{path.name} is neither a CSV nor a Parquet file; export the series as one of the two")
    return reader(path, options)
