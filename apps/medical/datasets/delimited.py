"""Reads tables in text files, separated by commas, tabs or semicolons; cells may be quoted or padded."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten

from shared.errors import InvalidInputError

_PADDING = " \t\r\n\0\"'"


def read_cells(file: Path) -> Iterator[list[str]]:
    """The rows as text without quotes and padding. The separator is the one that is most frequent in the first line."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{file} cannot be read as text ({error}); provide a CSV file in UTF-8") from None
    lines = text.splitlines()
    first_line = lines[0] if lines else ""
    separator = max(",\t;", key=first_line.count)
    for row in csv.reader(lines, delimiter=separator, skipinitialspace=separator != "\t"):
        yield [cell.strip(_PADDING) for cell in row]


def read_columns(file: Path, columns: dict[str, str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields the row number and the cells of every row below the header, which is row 1.

    ``columns`` maps keys of the result to column names of the file, which are compared without case. Raises
    InvalidInputError if a column is missing or a row is too short.
    """
    rows = read_cells(file)
    header = [cell.lower() for cell in next(rows, [])]
    if missing := [name for name in columns.values() if name.lower() not in header]:
        available = shorten(", ".join(header), 300) or "none"  # if the file is not a table, its first line may be huge
        raise InvalidInputError(f"{file.name} has no column {', '.join(missing)}; its columns are {available}")
    positions = {key: header.index(name.lower()) for key, name in columns.items()}
    for number, cells in enumerate(rows, start=2):
        if any(cells):
            if len(cells) <= max(positions.values()):
                raise InvalidInputError(f"{file.name}, row {number} has only {len(cells)} cells: {' | '.join(cells)}")
            yield number, {key: cells[position] for key, position in positions.items()}
