"""Excel workbooks to ``Series``: the first sheet with a table, below titles and beside notes as in CSV files."""

from __future__ import annotations

import csv
import io
import logging
import re
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from apps.finance.adapters.columns import TIMES, normalised_label
from apps.finance.adapters.csv import SAMPLED_LINES, table_layout
from apps.finance.adapters.options import TableOptions
from apps.finance.adapters.side_by_side import stack_securities
from apps.finance.adapters.table import MAX_COLUMNS, Contents, to_contents
from shared.data.archive import ArchiveLimits, open_archive
from shared.errors import InvalidInputError

_LIMITS = ArchiveLimits(files=1000, unpacked_bytes=1 << 30)
_MAX_CELLS = 20_000_000
_SERIAL_DAYS = (20_000, 80_000)
"""Day numbers from 1954 to 2119."""


def read_excel(path: Path, options: TableOptions) -> Contents:
    """All series in a workbook. Cells formatted as dates are dates; numbers from 20,000 to 80,000 in a time column are
    Excel's day numbers. Numbers keep their stored precision, but nine decimals in columns that also hold words."""
    try:
        import fastexcel
    except ImportError as error:
        raise InvalidInputError(
            f"{path.name}: workbooks need the package fastexcel; install trivium[excel], or save the sheet as CSV"
        ) from error
    logging.getLogger("fastexcel").setLevel(logging.ERROR)  # it warns about each column without a value
    _refuse_large(path)
    try:
        book = fastexcel.read_excel(path)
        sheets = [(name, book.load_sheet(name, header_row=None, n_rows=SAMPLED_LINES, dtypes="string").to_polars())
                  for name in book.sheet_names]  # fmt: skip
        chosen = _choose_sheet(sheets, path.name, bool(options.time and options.time.isdecimal()))
        name, (_, labels, first, notes, names) = chosen
        sheet = book.load_sheet(name, header_row=None, skip_rows=first, schema_sample_rows=None)
        frame = sheet.to_polars()
    except fastexcel.FastExcelError as error:
        raise InvalidInputError(
            f"{path.name} is not a readable workbook ({error}); save it again, or save it as CSV"
        ) from error
    frame = frame[:, : len(labels)]
    frame.columns = labels[: frame.width]
    lines = np.arange(first + 1, first + 1 + frame.height)
    if len(book.sheet_names) > 1:
        notes = [f"sheet {name!r} was read, the first of {len(book.sheet_names)} with a table", *notes]
    frame, lines, stacking_note = stack_securities(frame, lines, names)
    options = _with_serial_days(frame, options)
    contents = to_contents(frame, path.name, options, lines)
    return replace(contents, notes=(*notes, *([stacking_note] if stacking_note else []), *contents.notes))


def _refuse_large(path: Path) -> None:
    """Raises InvalidInputError if a workbook would unpack to too much, or if a sheet extends too far: a single cell at
    its very end makes a table of 17 thousand million cells."""
    with open_archive(path, _LIMITS) as members:
        for member in members:
            content = member.read()
            if b"sheetData" in content and (size := _cells(content)) > _MAX_CELLS:
                problem = f"a sheet of {size} cells, including empty ones, and at most {_MAX_CELLS} can be read"
                remedy = "delete rows and columns beyond the table, or convert it to CSV or Parquet"
                raise InvalidInputError(f"{path.name} has {problem}; {remedy}", status=413)


def _cells(sheet: bytes) -> int:
    """The number of cells of a sheet's table, at least a quarter of what the reader makes of any sheet.

    Cells and rows state their position, or follow the one before them.
    """
    columns = {_column_number(letters[:8]) for letters in {*re.findall(rb"\br\s*=\s*[\"']([A-Za-z]+)", sheet)}}
    digits = {*re.findall(rb"\br\s*=\s*[\"'][A-Za-z]*(\d+)", sheet)}
    rows = {int(number.lstrip(b"0")[:8] or 0) for number in digits}
    tags = b"".join(re.findall(rb"<(?:[^\s<>/:]+:)?(c|row)[\s/>]", sheet)).split(b"row")
    return max(len(tags) - 1, *rows, 0) * max(*map(len, tags), *columns, 0)


def _column_number(letters: bytes) -> int:
    """The number of a column: 1 for A, 27 for AA."""
    return reduce(lambda number, letter: 26 * number + letter - 64, letters.upper(), 0)


def _choose_sheet(sheets: list[tuple[str, pl.DataFrame]], name: str, numbered: bool) -> tuple[str, Any]:
    """The first sheet with a header and rows, and its layout. Raises InvalidInputError with the first sheet's fault if
    there is none."""
    first_error: InvalidInputError | None = None
    for sheet, top in sheets:
        if top.width > MAX_COLUMNS:
            raise InvalidInputError(f"{name}, sheet {sheet!r} has more than {MAX_COLUMNS} columns; delete some")
        text = io.StringIO()
        csv.writer(text, delimiter="\t", lineterminator="\n").writerows(_on_one_line(row) for row in top.iter_rows())
        try:
            return sheet, table_layout(text.getvalue(), f"{name}, sheet {sheet!r},", numbered)
        except InvalidInputError as error:
            first_error = first_error or error
    raise first_error or InvalidInputError(f"{name} has no sheet; use a workbook with a table")


def _on_one_line(row: tuple[str | None, ...]) -> list[str]:
    return [" ".join((cell or "").split()) for cell in row]


def _with_serial_days(frame: pl.DataFrame, options: TableOptions) -> TableOptions:
    """The options with Excel's day numbers as the unit, if a time column holds such numbers and no unit is given."""
    if options.unit is not None:
        return options
    for label in frame.columns:
        cells = frame[label].drop_nulls()
        if normalised_label(label) in TIMES and cells.dtype.is_numeric() and cells.is_between(*_SERIAL_DAYS).all():
            return replace(options, unit="excel")
    return options
