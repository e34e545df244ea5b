"""Where the header and the rows of a CSV file are, what parts its cells, and what its columns are called."""

from __future__ import annotations

import csv
import itertools
import re
from collections import Counter
from dataclasses import dataclass

from apps.finance.adapters.columns import TIMES, plain
from apps.finance.adapters.times import parse_times
from shared.errors import InvalidInputError

_SEPARATORS = (",", ";", "\t", "|")
_LOOKED_AT = 100
MOST_COLUMNS = 2000
_MOST_PREAMBLE, _MOST_HEADER = 40, 4
_LIKE_A_TIME = re.compile(r"\d[-/.:年 ]*\d{1,2}[-/.:月 ]\d|\d{8}|\d{4}[- ]?[Qq]\d|[A-Za-z]{3}.*\d{4}|\d{4}[-/年]\d")


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

    Its separator is the one with which the first lines have the same number of cells, its header the first line with
    that number. Lines in front of the header (a title, comments) and further lines of names or units below it are left
    out; a second line of names tells columns of the same name apart. Refuses a file without a header, and one with its
    times in the header.
    """
    head = text[:2_000_000]
    lines = list(itertools.islice(head.split("\n"), _LOOKED_AT))
    filled = [(number, line) for number, line in enumerate(lines) if line.strip()]
    if not filled:
        raise InvalidInputError(f"{name} is empty; it needs a header line such as 'timestamp,value' and rows")
    other = re.match(r"\s*(?:(<(?:!doctype|html|head|\?xml|table))|[\[{])", filled[0][1], re.IGNORECASE)
    if other:
        raise InvalidInputError(
            f"{name} is {'HTML' if other[1] else 'JSON'} and not CSV; export the series as CSV or Parquet"
        )
    if max(line.count(mark) for _, line in filled for mark in _SEPARATORS) >= MOST_COLUMNS:
        raise InvalidInputError(
            f"{name} has more than {MOST_COLUMNS} columns; hand in a file with those that matter, or with several "
            "series below each other and a column 'ticker' that names them"
        )
    hint = re.fullmatch(r'"?sep=(.)"?', filled[0][1].strip())
    if hint:
        filled = filled[1:]
    best: tuple[tuple[int, int], str, int, list[list[str]]] | None = None
    for separator in [hint[1]] if hint and hint[1] in _SEPARATORS else _SEPARATORS:
        cells = [_cells(line, separator) for _, line in filled]
        width, _ = Counter(len(row) for row in cells[1:] or cells).most_common(1)[0]
        if len(filled) == 1 or width < 2:
            width = max((len(row) for row in cells), default=1)
        if width < 2:
            continue
        header = _header(cells, width)
        rank = (-header, width)
        if best is None or rank > best[0]:
            best = rank, separator, header, cells
    if best is None:
        first = filled[0][1].strip()[:40]
        raise InvalidInputError(f"{name} has a single column ({first!r}); it needs a time column and a value column")
    _, separator, header, cells = best
    if header > _MOST_PREAMBLE:
        raise InvalidInputError(f"{name} has no header line; put one such as 'timestamp,value' before the first row")
    labels = [
        label.strip().lstrip("#").strip() if place == 0 else label.strip() for place, label in enumerate(cells[header])
    ]
    fault = _data_fault(labels)
    if fault and header and len(cells[header - 1]) != len(labels):
        fault = (
            f"has {len(labels)} cells in line {filled[header][0] + 1} and {len(cells[header - 1])} in line "
            f"{filled[header - 1][0] + 1} above it; where numbers or dates have commas, put them in quotes, or part "
            "the cells by semicolons"
        )
    if fault:
        raise InvalidInputError(f"{name} {fault}")
    notes = []
    if header:
        notes.append(
            f"the first {header} lines were left out: they stand in front of the header in line {filled[header][0] + 1}"
        )
    rows = cells[header + 1 :]
    if rows and all(len(row) == len(labels) + 1 and not row[-1].strip() for row in rows):
        labels.append("")
    more = _more_header(rows)
    for row in rows[:more]:
        labels = _refined(labels, row)
    if more:
        notes.append(
            f"{'a further line' if more == 1 else f'{more} further lines'} of names below the header was read as such"
        )
    first_row = filled[header + more][0] + 1
    offset = sum(len(line) + 1 for line in lines[:first_row])
    return Layout(separator, _unique(labels), offset, first_row + 1, tuple(notes))


def _cells(line: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=separator))
    except (csv.Error, StopIteration):
        return line.split(separator)


def _header(cells: list[list[str]], width: int) -> int:
    """The place of the header: the first line as wide as most; one cell less will do above rows that end in nothing."""
    # Lines of names and their values, such as Symbol,AAPL, may stand above a header of the same width.
    for place, row in enumerate(cells[: _MOST_PREAMBLE + 1]):
        named = any(plain(cell) in TIMES for cell in row) and sum(bool(cell.strip()) for cell in row) > width / 2
        if len(row) == width and named and not row[0].lstrip().startswith("#"):
            return place
    for place, row in enumerate(cells):
        following = cells[place + 1] if place + 1 < len(cells) else row
        comment = row[0].lstrip().startswith("#") and not any(_is_number(cell) or _is_time(cell) for cell in following)
        short = len(row) == width - 1 and width > 2 and len(following) == width and not following[-1].strip()
        if (len(row) == width or short) and not comment:
            return place
    return next(place for place, row in enumerate(cells) if len(row) == width)


def _data_fault(labels: list[str]) -> str:
    """Why labels are no header, or nothing."""
    times = sum(_is_time(label) for label in labels[:_LOOKED_AT])
    if times > 2:
        return "has times in its header, one column each; turn it over, so that each time has a row"
    numbers = [_is_number(label) for label in labels]
    counted = labels[0] == "" and labels[1:] == [str(number) for number in range(len(labels) - 1)]
    if not counted and (times or sum(numbers) >= max(1, len(labels) - 1)):
        return "has no header line; put one such as 'timestamp,value' before the first row"
    return ""


def _more_header(rows: list[list[str]]) -> int:
    """How many of the first rows are words alone, where numbers or times follow."""
    for place, row in enumerate(rows[:_MOST_HEADER]):
        filled = [cell.strip() for cell in row if cell.strip()]
        if not filled or any(
            _is_number(cell) or _is_time(cell) or not any(c.isalnum() for c in cell) for cell in filled
        ):
            return place if filled else 0
        if any(cell.lower() in ("na", "nan", "null", "none", "n/a") for cell in filled):
            return 0
    return 0


def _refined(labels: list[str], row: list[str]) -> list[str]:
    row = [cell.strip() for cell in row] + [""] * (len(labels) - len(row))
    if row and plain(row[0]) in TIMES and plain(labels[0]) not in TIMES:
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
    try:
        float(cell.strip().replace(",", ".").strip("$€£¥% "))
    except ValueError:
        return False
    return cell.strip().lower() not in ("nan", "inf", "infinity")


def _is_time(cell: str) -> bool:
    """Whether a cell is a time and no bare number."""
    import polars as pl

    cell = cell.strip()
    if not _LIKE_A_TIME.search(cell) or _is_number(cell):
        return False
    try:
        parse_times(pl.Series("", [cell]), "")
    except InvalidInputError as refusal:
        return "ambiguous" in str(refusal)
    return True
