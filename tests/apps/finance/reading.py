"""Helpers that read files and columns with the application's readers, for files of one series."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from apps.finance.adapters import read_contents
from apps.finance.adapters.options import DEFAULT_OPTIONS, TableOptions
from apps.finance.adapters.times import Clock, Column
from apps.finance.adapters.times import read_times as read_column
from apps.finance.types import Series


def read_series(path: Path, options: TableOptions = DEFAULT_OPTIONS) -> Series:
    """The only series in a file, with the file's notes."""
    contents = read_contents(path, options)
    (series,) = contents.series
    return replace(series, notes=contents.notes)


def read_times(cells: pl.Series, options: TableOptions = DEFAULT_OPTIONS) -> Clock:
    """The times in a column of a file named x whose rows begin in line 2."""
    return read_column(Column(cells, "x", np.arange(2, len(cells) + 2)), options)
