"""Parquet files to ``Series``. The size is checked in the metadata before anything is read."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path

import polars as pl
import pyarrow.parquet

from apps.finance.adapters.columns import matching_label
from apps.finance.adapters.options import TableOptions
from apps.finance.adapters.table import MAX_COLUMNS, Contents, to_contents
from shared.errors import InvalidInputError

_TWO_LEVELS = re.compile(r"\('(\\.|[^'\\])*', '(\\.|[^'\\])*'\)$")
MAX_CELLS, MAX_FILE_ROWS = 100_000_000, 10_000_000
"""Repeated rows compress to almost nothing: 40 million rows in 250 kB took 2 GB and half a minute before they were
refused."""


def read_parquet(path: Path, options: TableOptions) -> Contents:
    """All series in a Parquet file. From a file that is too large, only the columns that the options name are read.

    Raises InvalidInputError if these are still too large, or if the options do not name time, value and series of such
    a file, and if the file is not readable.
    """
    try:
        metadata = pyarrow.parquet.read_metadata(path)
        known = set(metadata.schema.to_arrow_schema().names)
        paths = (metadata.schema.column(index).path for index in range(metadata.num_columns))
        tops = [path if path in known else path.split(".")[0] for path in paths]
        rows, labels = metadata.num_rows, _single_level_names(dict.fromkeys(tops))
        if rows > MAX_FILE_ROWS:
            raise InvalidInputError(
                f"{path.name} has {rows} rows, and at most {MAX_FILE_ROWS} can be read; split it by time"
            )
        if len(tops) > MAX_COLUMNS or rows * len(tops) > MAX_CELLS:
            option_columns = [
                options.time,
                options.value,
                options.series,
                *([options.labels] if options.labels else []),
            ]
            wanted = [matching_label(name or "", list(labels.values())) for name in option_columns]
            labels = labels if None in wanted else {top: label for top, label in labels.items() if label in wanted}
        width = sum(top in labels for top in tops)
        if width > MAX_COLUMNS or rows * width > MAX_CELLS:
            problem = (
                f"{rows} rows of {width} columns, and at most {MAX_COLUMNS} columns and {MAX_CELLS} cells can be read"
            )
            remedy = "split it by time, or name the columns to read with the options time, value and series"
            raise InvalidInputError(f"{path.name} has {problem}; {remedy}")
        frame = pl.read_parquet(path, columns=list(labels)).rename(labels)
    except (pl.exceptions.PolarsError, pyarrow.ArrowException, OSError) as error:
        raise InvalidInputError(f"{path.name} is not a readable Parquet file ({error}); convert it to CSV") from error
    return to_contents(frame, path.name, options)


def _single_level_names(labels: Iterable[str]) -> dict[str, str]:
    """Each label mapped to a single-level name: pandas writes two levels as "('Close', 'AAPL')", as in yfinance's
    files.

    A level with the same name for all columns is dropped.
    """
    all_labels = list(labels)
    pairs = {label: ast.literal_eval(label) for label in all_labels if _TWO_LEVELS.match(label)}
    levels = [set(level) - {""} for level in zip(*pairs.values(), strict=True)]
    kept = [index for index, level in enumerate(levels) if len(level) > 1] or range(len(levels))
    names = {label: " ".join(pair[index] for index in kept).strip() for label, pair in pairs.items()}
    return {label: names.get(label, label) for label in all_labels}
