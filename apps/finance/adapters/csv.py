"""CSV files to ``Series``. Encoding, separator and header are detected; so is the decimal mark if it is not given."""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from apps.finance.adapters.binance import binance_columns
from apps.finance.adapters.columns import TIMES, normalised_label
from apps.finance.adapters.options import TableOptions
from apps.finance.adapters.side_by_side import security_names, stack_securities
from apps.finance.adapters.table import MAX_COLUMNS, Contents, to_contents
from shared.errors import InvalidInputError

MAX_BYTES, MAX_LINES = 512 * 1024 * 1024, 2_500_000
"""Three million repeated rows in 72 MB took half a minute and 1.5 GB, and at most two million rows are scored at a
time."""
_SEPARATORS = ",;\t|"
SAMPLED_LINES, _MAX_PREAMBLE, _MAX_HEADER, _MIN_OMITTED_ROWS = 100, 40, 4, 16
_TIME = re.compile(r"\d{4}[-/.年]\d{1,2}([-/.月]\d|$)|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}|\d{8}( |T|$)")
_WORDS = re.compile(r"[\s\"'(]*([^\W\d_]|[#*©])")
_NUMBER = re.compile(r"[+-]?[$€£¥]?\d[\d.,]*([eE][+-]?\d+)?[%KMB]?$")


def read_csv(path: Path, options: TableOptions) -> Contents:
    """All series in a CSV file; see ``table_layout`` and ``to_contents`` for what is understood and refused."""
    name = path.name
    if path.stat().st_size > MAX_BYTES:
        raise InvalidInputError(
            f"{name} is larger than {MAX_BYTES >> 20} MiB; split it by time, or convert it to Parquet"
        )
    content = path.read_bytes()
    if (line_count := max(content.count(b"\n"), content.count(b"\r"))) > MAX_LINES:
        raise InvalidInputError(f"{name} has {line_count} lines, and at most {MAX_LINES} can be read; split it by time")
    text = _decode(content, name)
    separator, labels, first, notes, names = table_layout(
        text, name, bool(re.fullmatch(r"\d+(\+\d+)?", options.time or ""))
    )
    rows, below = _without_footer("".join(text.split("\n", first)[first:]), separator, labels[0], first)
    wide = separator.join(f"column{number}" for number in range(len(labels)))  # the first row may be short
    try:
        frame = pl.read_csv(f"{wide}\n{rows}".encode(errors="replace"), separator=separator, infer_schema=False)
        frame.columns = labels
    except pl.exceptions.PolarsError as error:
        raise InvalidInputError(
            f"{name} is not a CSV file: {_describe_fault(rows, separator, len(labels), first)}"
        ) from error
    _refuse_short_rows(frame, rows, separator, first, name)
    notes, lines = [*notes, *below], np.arange(first + 1, first + 1 + frame.height)
    *_, separators_before, separators_last = (line.count(separator) for line in ("\n\n" + rows).rsplit("\n", 2))
    if not rows.endswith("\n") and 0 < separators_last < separators_before:
        notes += [
            f"the last line, {lines[-1]}, was left out: the file is cut off after {separators_last + 1} of "
            f"{separators_before + 1} cells"
        ]
        frame, lines = frame.head(-1), lines[:-1]
    frame, lines, stacking_note = stack_securities(frame, lines, names)
    notes += [stacking_note] if stacking_note else []
    contents = to_contents(frame, name, options, lines, separator)
    return replace(contents, notes=(*notes, *contents.notes))


def _decode(content: bytes, name: str) -> str:
    """The text of a file in UTF-8, UTF-16 with a byte order mark, GB18030 or Windows-1252, with lines ended by
    newlines."""
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    if encoding != "utf-16" and b"\x00" in content[:4096]:
        raise InvalidInputError(
            f"{name} is not a text file; give a CSV file, or a Parquet file with the suffix .parquet"
        )
    try:
        text = content.decode(encoding, errors="replace" if encoding == "utf-16" else "strict")
    except UnicodeDecodeError:
        from charset_normalizer import from_bytes

        lines = b"\n".join(line for line in content[:1_000_000].splitlines() if not line.isascii())[:65536]
        best = from_bytes(lines, cp_isolation=["gb18030", "cp1252"]).best()
        # A single non-ASCII character fits both encodings; Chinese headers have words of two or more characters.
        chinese = best is not None and best.encoding == "gb18030" and re.search("[\u4e00-\u9fff]{2}", str(best))
        text = content.decode("gb18030" if chinese else "cp1252", errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def table_layout(text: str, name: str, numbered: bool) -> tuple[str, list[str], int, list[str], list[str]]:
    """Returns the separator, the unique column names, the number of lines before the rows, notes, and the names of
    the securities above the columns, one for each column; an empty list if there are none.

    The separator is the one with which most of the first lines have the same number of cells. The header is the first
    line that names a time column, else the first of that width. Further header lines make repeated column names unique.
    """
    lines = text[:2_000_000].split("\n")[:SAMPLED_LINES]
    filled = [number for number, line in enumerate(lines) if line.strip()]
    if not filled:
        raise InvalidInputError(f"{name} is empty; it needs a header line such as 'timestamp,value' and rows")
    if re.match(r"\s*(<(!doctype|html|head|\?xml|table)|[\[{])", lines[filled[0]], re.IGNORECASE):
        raise InvalidInputError(f"{name} is HTML or JSON, not CSV; export the series as CSV or Parquet")
    if max(line.count(mark) for line in lines for mark in _SEPARATORS) >= MAX_COLUMNS:
        raise InvalidInputError(f"{name} has more than {MAX_COLUMNS} columns; keep only those that you need")
    sample = [lines[number][:131_072] for number in filled]  # the csv module's maximum cell length
    if not numbered and (known := binance_columns(sample[: -1 if len(sample) > 1 else None])):
        note = f"the file has no header; its columns are those of Binance's {known[0]}"
        return ",", known[1], filled[0], [note], []
    separator, width, rows_of_cells = _split_cells(sample)
    if width < 2:
        raise InvalidInputError(
            f"{name} has a single column ({sample[0][:40]!r}); it needs a column of times and a column of values"
        )
    filled_rows = (index for index, row in enumerate(rows_of_cells) if sum(map(bool, row)) > len(row) / 2)
    time_headers = (
        index for index in filled_rows if any(normalised_label(cell) in TIMES for cell in rows_of_cells[index])
    )
    header = next(time_headers, next(index for index, row in enumerate(rows_of_cells) if len(row) == width))
    labels = [rows_of_cells[header][0].lstrip("# "), *rows_of_cells[header][1:]]
    is_headerless = any(map(_TIME.match, labels)) or (
        labels[0] != "" and len(list(filter(_NUMBER.match, labels))) >= width - 1
    )
    if header > _MAX_PREAMBLE or (is_headerless and not numbered):
        remedy = "put one such as 'timestamp,value' before the rows, or name columns by number: time=1 and value=5"
        raise InvalidInputError(f"{name} has no header line that names its columns; {remedy}")
    if len(labels) != width:
        problem = f"{len(labels)} cells in its header in line {filled[header] + 1} and {width} in most lines"
        remedy = "if numbers or dates contain commas, put them in quotes, or separate the cells by semicolons"
        raise InvalidInputError(f"{name} has {problem}; {remedy}")
    security_labels = (
        security_names(rows_of_cells[:header], labels) if len({*filter(None, labels)}) < sum(map(bool, labels)) else []
    )
    skipped = header - bool(security_labels)
    lines_were = f"{skipped} lines were left out: they precede" if skipped > 1 else "line was left out: it precedes"
    notes = [f"the first {lines_were} line {filled[header] + 1}"] * (skipped > 0)
    if is_headerless:
        return separator, [str(number + 1) for number in range(width)], filled[header], notes, []
    below = rows_of_cells[header + 1 : header + _MAX_HEADER + 2]
    extra_lines = next((n for n, row in enumerate(below) if not _describes_columns(row, below)), 0)
    if extra_lines:
        further = f"{extra_lines} further line{'s' * (extra_lines > 1)}"
        notes.append(f"{further} of names below the header were read as part of it")
    labels = _unique_labels(labels, below[:extra_lines], security_labels)
    return separator, labels, filled[header + extra_lines] + 1, notes, security_labels


def _split_cells(lines: list[str]) -> tuple[str, int, list[list[str]]]:
    """The separator, the number of cells in most lines, and the cells of each line."""
    split = {
        mark: [[cell.strip() for cell in next(csv.reader([line], delimiter=mark))] for line in lines]
        for mark in _SEPARATORS
    }
    widths = ((mark, width) for mark, rows in split.items() for width in map(len, rows) if width > 1)
    (separator, width), _ = max(Counter(widths).items(), key=lambda item: (item[1], item[0][1]), default=((",", 1), 0))
    return separator, width, split[separator]


def _unique_labels(labels: list[str], further_lines: list[list[str]], security_labels: list[str]) -> list[str]:
    """The header's names, with repeated ones made unique: by the cells below them, by the names of the securities above
    them, or by numbers."""
    for row in further_lines:
        if normalised_label(row[0]) in TIMES and normalised_label(labels[0]) not in TIMES:
            labels = [row[0], *labels[1:]]
        counts, cells = Counter(labels), [*row, *[""] * len(labels)]
        labels = [
            f"{label} {cell}".strip() if counts[label] > 1 else label
            for label, cell in zip(labels, cells, strict=False)
        ]
    counts = Counter(labels)
    for index, name in enumerate(security_labels):
        if counts[labels[index]] > 1 and labels[index] and normalised_label(labels[index]) not in TIMES:
            labels[index] = f"{name} {labels[index]}".strip()
    return [
        f"{label} ({count + 1})".strip() if (count := labels[:index].count(label)) else label
        for index, label in enumerate(labels)
    ]


def _describes_columns(row: list[str], below: list[list[str]]) -> bool:
    """Whether a line below the header has further names or units: it has no number and no time, or it begins with a
    word, such as ``last update``, while rows begin with a time."""
    if not any(_NUMBER.match(cell) or _TIME.match(cell) for cell in row):
        return True
    return bool(_WORDS.match(row[0])) and any(_TIME.match(later[0]) for later in below[below.index(row) + 1 :])


def _without_footer(rows: str, separator: str, label: str, first: int) -> tuple[str, list[str]]:
    """The rows without up to 20 last lines that begin with a word although the first row begins with a time, and a
    note."""
    row, last_lines = rows[:200].lstrip("\"' "), rows.rstrip().rsplit("\n", 20)
    if not row[:1].isdecimal() or not (normalised_label(label) in TIMES or _TIME.match(row)):
        return rows, []
    data_lines = (
        index
        for index in range(len(last_lines) - 1, 0, -1)
        if last_lines[index].strip() and not _WORDS.match(last_lines[index])
    )
    end = next(data_lines, 0) + 1
    while end < len(last_lines) and not last_lines[end].strip():
        end += 1
    if end == len(last_lines) or (end < 2 and "\n" not in last_lines[0]):
        return rows, []
    kept = "\n".join([*last_lines[:end], ""])
    cell = next(csv.reader([last_lines[end]], delimiter=separator))[0].strip()
    line = first + kept.count("\n") + 1
    return kept, [f"everything from line {line} on was left out: {cell!r} is not a time"]


def _refuse_short_rows(frame: pl.DataFrame, rows: str, separator: str, first: int, name: str) -> None:
    """Raises InvalidInputError for a row with missing cells and further rows below it, because cells may have shifted.

    Spreadsheets omit the empty last cells of 16 or more consecutive rows when they write CSV; so many in a row are
    accepted.
    """
    empty_ends = frame.to_series(-1).is_null().arg_true()
    lines = pl.Series(rows.removesuffix("\n").split("\n") if len(empty_ends) else [])
    if not len(empty_ends) or len(lines) != frame.height:  # or a cell has several lines
        return
    full = lines.str.strip_chars() != ""
    cells = lines.gather(empty_ends).str.replace_all('"[^"]*"', "").str.count_matches(separator, literal=True) + 1
    short = empty_ends.filter((cells < frame.width) & full.gather(empty_ends)).to_numpy()
    for run in np.split(short, np.flatnonzero(np.diff(short) > 1) + 1) if len(short) else []:
        if len(run) < _MIN_OMITTED_ROWS and full[int(run[-1]) + 1 :].any():
            cell_count = len(next(csv.reader([lines[int(run[0])]], delimiter=separator)))
            problem = (
                f"line {first + 1 + run[0]} has {cell_count} cell{'s' * (cell_count > 1)} "
                f"but the header has {frame.width}"
            )
            raise InvalidInputError(f"{name}: {problem}; keep the separators of missing values")


def _describe_fault(rows: str, separator: str, width: int, first: int) -> str:
    """What is wrong with the rows, with the number of the first such line."""
    for number, line in enumerate(rows.split("\n"), start=first + 1):
        if line.count('"') % 2:
            return f"line {number} has an unmatched quotation mark; remove it, or double it"
        if '"' not in line and line.count(separator) >= width:
            return f"line {number} has {line.count(separator) + 1} cells but the header has {width}; correct the line"
    return "its rows do not match its header; export it again, or convert it to Parquet"
