"""Tables in text files: separated by commas, tabs or semicolons, with cells that may be quoted or padded."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten

from shared.errors import InvalidInputError

_PADDING = " \t\r\n\0\"'"


def read_cells(file: Path) -> Iterator[list[str]]:
    """The rows as text without quotes and padding, separated by whichever separator the first line has most of."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{file} cannot be read as text ({error}); give a CSV file in UTF-8") from None
    lines = text.splitlines()
    first = lines[0] if lines else ""
    separator = max(",\t;", key=first.count)
    for row in csv.reader(lines, delimiter=separator, skipinitialspace=separator != "\t"):
        yield [cell.strip(_PADDING) for cell in row]


def read_columns(file: Path, columns: dict[str, str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Number from 1 and cells of every row; ``columns`` are the file's names, without case, by those of the result.

    Refuses a file that lacks one of them.
    """
    rows = read_cells(file)
    heading = [cell.lower() for cell in next(rows, [])]
    if missing := [name for name in columns.values() if name.lower() not in heading]:
        there = shorten(", ".join(heading), 300) or "none"  # of a file that is no table the first line may be all of it
        raise InvalidInputError(f"{file.name} has no column {', '.join(missing)}; its columns are {there}")
    places = {key: heading.index(name.lower()) for key, name in columns.items()}
    for number, cells in enumerate(rows, start=2):
        if any(cells):
            if len(cells) <= max(places.values()):
                raise InvalidInputError(f"{file.name}, row {number} has {len(cells)} cells: {' | '.join(cells)}")
            yield number, {key: cells[place] for key, place in places.items()}
