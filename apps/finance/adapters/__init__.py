"""The readers of the finance application: one file per format, and the table of file suffixes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from apps.finance.adapters.options import DEFAULT_OPTIONS, TableOptions
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from apps.finance.adapters.table import Contents

SUFFIXES = {
    **dict.fromkeys((".csv", ".txt", ".tsv", ""), "CSV"),
    **dict.fromkeys((".parquet", ".pq"), "Parquet"),
    **dict.fromkeys((".xlsx", ".xlsm"), "Excel"),
}


def read_contents(path: Path, options: TableOptions = DEFAULT_OPTIONS) -> Contents:
    """All series in a file, read by the reader for its suffix. Raises InvalidInputError if the file cannot be read."""
    from apps.finance.adapters.csv import read_csv  # imports polars and pandas, which takes a second
    from apps.finance.adapters.excel import read_excel
    from apps.finance.adapters.parquet import read_parquet

    if path.suffix.lower() not in SUFFIXES:
        raise InvalidInputError(f"{path.name} is not a CSV, Parquet or XLSX file; export the series as one of these")
    if not path.is_file():
        raise InvalidInputError(f"{path.name} does not exist; check its path")
    if any("\ud800" <= letter <= "\udfff" for letter in path.name):  # bytes that are not UTF-8, as Python reads them
        raise InvalidInputError(f"the file's name {path.name!a} is not in UTF-8, so no result can state it; rename it")
    return {"CSV": read_csv, "Parquet": read_parquet, "Excel": read_excel}[SUFFIXES[path.suffix.lower()]](path, options)
