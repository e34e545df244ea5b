"""Parquet files to ``Series``. How much there is to read is looked up in the metadata before anything is read."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow.parquet

from apps.finance.adapters.columns import called
from apps.finance.adapters.options import TableOptions
from apps.finance.adapters.table import MOST_COLUMNS, Contents, to_contents
from shared.errors import InvalidInputError

MOST_CELLS, MOST_FILE_ROWS = 100_000_000, 10_000_000
"""Equal rows pack into nothing: 40 million in 250 kB took 2 GB and half a minute before they were refused."""


def read_parquet(path: Path, options: TableOptions) -> Contents:
    """All series in a Parquet file; of one that is too large the columns that the options name, if they name all."""
    try:
        metadata = pyarrow.parquet.read_metadata(path)
        tops = [metadata.schema.column(one).path.split(".")[0] for one in range(metadata.num_columns)]
        rows, labels = metadata.num_rows, dict.fromkeys(tops)
        if rows > MOST_FILE_ROWS:
            raise InvalidInputError(f"{path.name} has {rows} rows, and {MOST_FILE_ROWS} can be read; split it by time")
        if len(tops) > MOST_COLUMNS or rows * len(tops) > MOST_CELLS:
            named = [options.time, options.value, options.series, *([options.labels] if options.labels else [])]
            wanted = [called(name or "", list(labels)) for name in named]
            labels = labels if None in wanted else {one: None for one in wanted if one is not None}
        width = sum(top in labels for top in tops)
        if width > MOST_COLUMNS or rows * width > MOST_CELLS:
            what = f"{rows} rows of {width} columns, and {MOST_COLUMNS} columns and {MOST_CELLS} cells can be read"
            how = "split it by time, or name what matters with the options time, value and series"
            raise InvalidInputError(f"{path.name} has {what}; {how}")
        frame = pl.read_parquet(path, columns=list(labels))
    except (pl.exceptions.PolarsError, pyarrow.ArrowException, OSError) as error:
        raise InvalidInputError(f"{path.name} is not a readable Parquet file ({error}); hand in CSV") from error
    return to_contents(frame, path.name, options)
