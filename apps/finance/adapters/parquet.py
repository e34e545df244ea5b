"""Parquet files to ``Series``. How much there is to read is looked up in the metadata before anything is read."""

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
"""Equal rows pack into nothing: 40 million in 250 kB took 2 GB and half a minute before they were refused."""


def read_parquet(path: Path, options: TableOptions) -> Contents:
    """All series in a Parquet file; of one that is too large the columns that the options name, if they name all."""
    try:
        metadata = pyarrow.parquet.read_metadata(path)
        known = set(metadata.schema.to_arrow_schema().names)
        paths = (metadata.schema.column(one).path for one in range(metadata.num_columns))
        tops = [path if path in known else path.split(".")[0] for path in paths]
        rows, labels = metadata.num_rows, _one_level(dict.fromkeys(tops))
        if rows > MAX_FILE_ROWS:
            raise InvalidInputError(f"{path.name} has {rows} rows, and {MAX_FILE_ROWS} can be read; split it by time")
        if len(tops) > MAX_COLUMNS or rows * len(tops) > MAX_CELLS:
            named = [options.time, options.value, options.series, *([options.labels] if options.labels else [])]
            wanted = [matching_label(name or "", list(labels.values())) for name in named]
            labels = labels if None in wanted else {one: label for one, label in labels.items() if label in wanted}
        width = sum(top in labels for top in tops)
        if width > MAX_COLUMNS or rows * width > MAX_CELLS:
            what = f"{rows} rows of {width} columns, and {MAX_COLUMNS} columns and {MAX_CELLS} cells can be read"
            how = "split it by time, or name what matters with the options time, value and series"
            raise InvalidInputError(f"{path.name} has {what}; {how}")
        frame = pl.read_parquet(path, columns=list(labels)).rename(labels)
    except (pl.exceptions.PolarsError, pyarrow.ArrowException, OSError) as error:
        raise InvalidInputError(f"{path.name} is not a readable Parquet file ({error}); hand in CSV") from error
    return to_contents(frame, path.name, options)


def _one_level(labels: Iterable[str]) -> dict[str, str]:
    """Each label, and its name in one level: pandas writes those of two as "('Close', 'AAPL')", as yfinance has them.

    A level that has one name for all columns is left out.
    """
    found = list(labels)
    pairs = {one: ast.literal_eval(one) for one in found if _TWO_LEVELS.match(one)}
    levels = [set(level) - {""} for level in zip(*pairs.values(), strict=True)]
    told = [place for place, level in enumerate(levels) if len(level) > 1] or range(len(levels))
    names = {one: " ".join(pair[place] for place in told).strip() for one, pair in pairs.items()}
    return {one: names.get(one, one) for one in found}
