"""Where the header and the rows of a CSV file are, what parts its cells, and what its columns are called."""

from __future__ import annotations

import csv
import itertools
import re
from collections import Counter
from dataclasses import dataclass

from apps.finance.adapters.columns import TIMES, plain
from shared.errors import InvalidInputError

MOST_COLUMNS = 2000
_SEPARATORS = (",", ";", "\t", "|")
_LOOKED_AT = 100
_MOST_PREAMBLE, _MOST_HEADER = 40, 4
_LIKE_A_TIME = re.compile(r"\d{4}[-/.年]\d{1,2}([-/.月]\d|$)|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}|\d{8}( |T|$)")


@dataclass(frozen=True, slots=True)
class Layout:
    """``labels`` are unique; the rows begin at ``offset`` in the text, in line ``first_line`` of the file."""

    separator: str
    labels: tuple[str, ...]
    offset: int
    first_line: int
    notes: tuple[str, ...]


def find_layout(text: str, name: str) -> Layout:
    """The layout of a CSV file.

    Its separator is the one with which the most of the first lines have the same number of cells, its header the first
    line of that width that names a time column, else the first line of that width. Lines in front of it (a title) and
    further lines of names below it are left out; a second line of names tells columns of the same name apart. Refuses a
    file without a header.
    """
    lines = list(itertools.islice(text[:2_000_000].split("\n"), _LOOKED_AT))
    filled = [(number, line) for number, line in enumerate(lines) if line.strip()]
    if not filled:
        raise InvalidInputError(f"{name} is empty; it needs a header line such as 'timestamp,value' and rows")
    if re.match(r"\s*(<(!doctype|html|head|\?xml|table)|[\[{])", filled[0][1], re.IGNORECASE):
        raise InvalidInputError(f"{name} is HTML or JSON and not CSV; export the series as CSV or Parquet")
    if max(line.count(mark) for _, line in filled for mark in _SEPARATORS) >= MOST_COLUMNS:
        raise InvalidInputError(
            f"{name} has more than {MOST_COLUMNS} columns; hand in a file with those that matter, or with several "
            "series below each other and a column 'ticker' that names them"
        )
    separator, width, cells = max(map(_split, _SEPARATORS, itertools.repeat(filled)), key=_consistency)
    if width < 2:
        first = filled[0][1].strip()[:40]
        raise InvalidInputError(f"{name} has a single column ({first!r}); it needs a time column and a value column")
    header = _header(cells, width)
    labels = [label.strip() for label in cells[header]]
    labels[0] = labels[0].lstrip("#").strip()
    if header > _MOST_PREAMBLE or _is_data(labels):
        raise InvalidInputError(
            f"{name} has no header line that names its columns; put one such as 'timestamp,value' before the first row"
        )
    if len(labels) != width:
        raise InvalidInputError(
            f"{name} has {len(labels)} cells in its header in line {filled[header][0] + 1} and {width} in most lines; "
            "where numbers or dates have commas, put them in quotes, or part the cells by semicolons"
        )
    notes = []
    if header:
        notes.append(
            f"the first {header} lines were left out: they stand in front of the header in line {filled[header][0] + 1}"
        )
    more = _more_header(cells[header + 1 :])
    for row in cells[header + 1 : header + 1 + more]:
        labels = _refined(labels, row)
    if more:
        notes.append(f"{more} further line{'s' * (more > 1)} of names below the header belong to it")
    first_row = filled[header + more][0] + 1
    offset = sum(len(line) + 1 for line in lines[:first_row])
    return Layout(separator, _unique(labels), offset, first_row + 1, tuple(notes))


Split = tuple[str, int, list[list[str]]]


def _split(separator: str, filled: list[tuple[int, str]]) -> Split:
    """The cells of each line, and how many most lines have."""
    cells = []
    for _, line in filled:
        try:
            cells.append(next(csv.reader([line], delimiter=separator)))
        except (csv.Error, StopIteration):
            cells.append(line.split(separator))
    widths = [len(row) for row in cells if len(row) > 1]
    return separator, Counter(widths or [1]).most_common(1)[0][0], cells


def _consistency(split: Split) -> tuple[bool, int, int]:
    _, width, cells = split
    return width > 1, sum(len(row) == width for row in cells), width


def _header(cells: list[list[str]], width: int) -> int:
    """The place of the header among lines that are not empty."""
    for place, row in enumerate(cells[: _MOST_PREAMBLE + 1]):
        # Lines of names and their values, such as Symbol,AAPL, may stand above a header of the same width.
        if any(plain(cell) in TIMES for cell in row) and sum(bool(cell.strip()) for cell in row) > len(row) / 2:
            return place
    return next(place for place, row in enumerate(cells) if len(row) == width)


def _is_data(labels: list[str]) -> bool:
    """Whether labels have times in them, or are numbers; pandas names a column 0 behind an index without a name."""
    times, numbers = any(map(_is_time, labels)), sum(map(_is_number, labels))
    return times or (labels[0] != "" and numbers >= max(1, len(labels) - 1))


def _more_header(rows: list[list[str]]) -> int:
    """How many of the first rows are words alone, where numbers or times follow."""
    for place, row in enumerate(rows[: _MOST_HEADER + 1]):
        if any(_is_number(cell) or _is_time(cell) for cell in row):
            return place
    return 0


def _refined(labels: list[str], row: list[str]) -> list[str]:
    row = [cell.strip() for cell in row] + [""] * (len(labels) - len(row))
    if plain(row[0]) in TIMES and plain(labels[0]) not in TIMES:
        labels = [row[0], *labels[1:]]
    often = Counter(labels)
    return [f"{label} {cell}" if often[label] > 1 and cell else label for label, cell in zip(labels, row, strict=False)]


def _unique(labels: list[str]) -> tuple[str, ...]:
    seen: Counter[str] = Counter()
    made = []
    for label in labels:
        seen[label] += 1
        made.append(label if seen[label] == 1 else f"{label} ({seen[label]})".strip())
    return tuple(made)


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"[+-]?[$€£¥]?\d[\d.,]*([eE][+-]?\d+)?[%KMB]?", cell.strip()) is not None


def _is_time(cell: str) -> bool:
    return _LIKE_A_TIME.match(cell.strip()) is not None
