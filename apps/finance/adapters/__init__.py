"""The readers of the finance application: one file a format, and this table of the endings of file names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from apps.finance.adapters.options import NOTHING_SAID, TableOptions
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from apps.finance.adapters.table import Contents

ENDINGS = {
    **dict.fromkeys((".csv", ".txt", ".tsv", ""), "CSV"),
    **dict.fromkeys((".parquet", ".pq"), "Parquet"),
    **dict.fromkeys((".xlsx", ".xlsm"), "Excel"),
}


def read_contents(path: Path, options: TableOptions = NOTHING_SAID) -> Contents:
    """All series in a file, by the reader of its ending."""
    from apps.finance.adapters.csv import read_csv  # with polars and pandas, which take a second to import
    from apps.finance.adapters.excel import read_excel
    from apps.finance.adapters.parquet import read_parquet

    if path.suffix.lower() not in ENDINGS:
        raise InvalidInputError(f"{path.name} is no CSV, Parquet or XLSX file; export the series as one of them")
    if not path.is_file():
        raise InvalidInputError(f"{path.name} does not exist")
    return {"CSV": read_csv, "Parquet": read_parquet, "Excel": read_excel}[ENDINGS[path.suffix.lower()]](path, options)
