"""CSV files to ``Series``. Encoding, separator, header and decimal mark are found out where not named."""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from apps.finance.adapters.binance import binance_columns
from apps.finance.adapters.columns import TIMES, plain
from apps.finance.adapters.options import TableOptions
from apps.finance.adapters.side_by_side import names_above, stacked
from apps.finance.adapters.table import MAX_COLUMNS, Contents, to_contents
from shared.errors import InvalidInputError

LARGEST, MAX_LINES = 512 * 1024 * 1024, 2_500_000
"""Three million equal rows in 72 MB took half a minute and 1.5 GB; more than two million are not scored at a time."""
_MARKS = ",;\t|"
LOOKED_AT, _MAX_PREAMBLE, _MAX_HEADER, _BLOCK = 100, 40, 4, 16
_TIME = re.compile(r"\d{4}[-/.年]\d{1,2}([-/.月]\d|$)|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}|\d{8}( |T|$)")
_WORDS = re.compile(r"[\s\"'(]*([^\W\d_]|[#*©])")
_NUMBER = re.compile(r"[+-]?[$€£¥]?\d[\d.,]*([eE][+-]?\d+)?[%KMB]?$")


def read_csv(path: Path, options: TableOptions) -> Contents:
    """All series in a CSV file; see ``table_layout`` and ``to_contents`` for what is understood and refused."""
    name = path.name
    if path.stat().st_size > LARGEST:
        raise InvalidInputError(f"{name} is larger than {LARGEST >> 20} MiB; split it by time, or hand in Parquet")
    content = path.read_bytes()
    if (ends := max(content.count(b"\n"), content.count(b"\r"))) > MAX_LINES:
        raise InvalidInputError(f"{name} has {ends} lines, and {MAX_LINES} can be read; split it by time")
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
        raise InvalidInputError(f"{name} is no CSV file: {_fault(rows, separator, len(labels), first)}") from error
    _refuse_short_rows(frame, rows, separator, first, name)
    notes, lines = [*notes, *below], np.arange(first + 1, first + 1 + frame.height)
    *_, before, last = (line.count(separator) for line in ("\n\n" + rows).rsplit("\n", 2))
    if not rows.endswith("\n") and 0 < last < before:
        notes += [f"line {lines[-1]}, the last, was left out: the file is cut after {last + 1} of {before + 1} cells"]
        frame, lines = frame.head(-1), lines[:-1]
    frame, lines, said = stacked(frame, lines, names)
    notes += [said] if said else []
    contents = to_contents(frame, name, options, lines, separator)
    return replace(contents, notes=(*notes, *contents.notes))


def _decode(content: bytes, name: str) -> str:
    """The text of a file in UTF-8, UTF-16 with its mark, GB18030 or Windows-1252, its lines ended by newlines."""
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    if encoding != "utf-16" and b"\x00" in content[:4096]:
        raise InvalidInputError(f"{name} is not text; hand in a CSV file, or a Parquet file with the ending .parquet")
    try:
        text = content.decode(encoding, errors="replace" if encoding == "utf-16" else "strict")
    except UnicodeDecodeError:
        from charset_normalizer import from_bytes

        lines = b"\n".join(line for line in content[:1_000_000].splitlines() if not line.isascii())[:65536]
        best = from_bytes(lines, cp_isolation=["gb18030", "cp1252"]).best()
        # A single character beyond ASCII can be either; Chinese headers have words of two and more.
        chinese = best is not None and best.encoding == "gb18030" and re.search("[\u4e00-\u9fff]{2}", str(best))
        text = content.decode("gb18030" if chinese else "cp1252", errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def table_layout(text: str, name: str, numbered: bool) -> tuple[str, list[str], int, list[str], list[str]]:
    """The separator, the columns' unique names, how many lines stand before the rows, what to say of them, and names
    of securities above the columns, each over the columns until the next, where there are several.

    With the separator the most of the first lines have the same number of cells; the header is the first line that
    names a time column, else the first of that width. Further lines of names tell columns of the same name apart.
    """
    lines = text[:2_000_000].split("\n")[:LOOKED_AT]
    filled = [number for number, line in enumerate(lines) if line.strip()]
    if not filled:
        raise InvalidInputError(f"{name} is empty; it needs a header line such as 'timestamp,value' and rows")
    if re.match(r"\s*(<(!doctype|html|head|\?xml|table)|[\[{])", lines[filled[0]], re.IGNORECASE):
        raise InvalidInputError(f"{name} is HTML or JSON and not CSV; export the series as CSV or Parquet")
    if max(line.count(mark) for line in lines for mark in _MARKS) >= MAX_COLUMNS:
        raise InvalidInputError(f"{name} has more than {MAX_COLUMNS} columns; hand in a file with those that matter")
    first = [lines[number][:131_072] for number in filled]  # the longest cell that csv reads
    if not numbered and (known := binance_columns(first[: -1 if len(first) > 1 else None])):
        said = f"the file has no header, and its columns are those of Binance's {known[0]}"
        return ",", known[1], filled[0], [said], []
    split = {
        mark: [[one.strip() for one in next(csv.reader([line], delimiter=mark))] for line in first] for mark in _MARKS
    }
    widths = ((mark, width) for mark, rows in split.items() for width in map(len, rows) if width > 1)
    (separator, width), _ = max(Counter(widths).items(), key=lambda one: (one[1], one[0][1]), default=((",", 1), 0))
    cells = split[separator]
    if width < 2:
        raise InvalidInputError(f"{name} has a single column ({first[0][:40]!r}); it needs one of times, one of values")
    full = (place for place, row in enumerate(cells) if sum(map(bool, row)) > len(row) / 2)
    named = (place for place in full if any(plain(cell) in TIMES for cell in cells[place]))
    header = next(named, next(place for place, row in enumerate(cells) if len(row) == width))
    labels = [cells[header][0].lstrip("# "), *cells[header][1:]]
    bare = any(map(_TIME.match, labels)) or (labels[0] != "" and len(list(filter(_NUMBER.match, labels))) >= width - 1)
    if header > _MAX_PREAMBLE or (bare and not numbered):
        how = "put one such as 'timestamp,value' before the rows, or name columns by number: time=1 and value=5"
        raise InvalidInputError(f"{name} has no header line that names its columns; {how}")
    if len(labels) != width:
        cells_of = f"{len(labels)} cells in its header in line {filled[header] + 1} and {width} in most lines"
        how = "where numbers or dates have commas, put them in quotes, or part the cells by semicolons"
        raise InvalidInputError(f"{name} has {cells_of}; {how}")
    above = names_above(cells[:header], labels) if len({*filter(None, labels)}) < sum(map(bool, labels)) else []
    left = header - bool(above)
    notes = [f"the first {left} lines were left out: they stand in front of line {filled[header] + 1}"] * (left > 0)
    if bare:
        return separator, [str(number + 1) for number in range(width)], filled[header], notes, []
    below = cells[header + 1 : header + _MAX_HEADER + 2]
    more = next((n for n, row in enumerate(below) if not _describes_columns(row, below)), 0)
    notes += [f"{more} further line{'s' * (more > 1)} of names below the header belong to it"] if more else []
    for row in below[:more]:
        if plain(row[0]) in TIMES and plain(labels[0]) not in TIMES:
            labels[0] = row[0]
        often, row = Counter(labels), [*row, *[""] * width]
        labels = [f"{one} {cell}".strip() if often[one] > 1 else one for one, cell in zip(labels, row, strict=False)]
    often = Counter(labels)
    for place, name in enumerate(above):
        if often[labels[place]] > 1 and labels[place] and plain(labels[place]) not in TIMES:
            labels[place] = f"{name} {labels[place]}".strip()
    again = [labels[:place].count(label) for place, label in enumerate(labels)]
    labels = [f"{one} ({count + 1})".strip() if count else one for one, count in zip(labels, again, strict=True)]
    return separator, labels, filled[header + more] + 1, notes, above


def _describes_columns(row: list[str], below: list[list[str]]) -> bool:
    """Whether a line below the header has further names or units: it holds no number and no time, or begins with a
    word, as ``last update`` does, where rows begin with a time."""
    if not any(_NUMBER.match(one) or _TIME.match(one) for one in row):
        return True
    return bool(_WORDS.match(row[0])) and any(_TIME.match(one[0]) for one in below[below.index(row) + 1 :])


def _without_footer(rows: str, separator: str, label: str, first: int) -> tuple[str, list[str]]:
    """The rows without up to 20 last lines that begin with a word where the first row begins with a time."""
    row, last = rows[:200].lstrip("\"' "), rows.rstrip().rsplit("\n", 20)
    if not row[:1].isdecimal() or not (plain(label) in TIMES or _TIME.match(row)):
        return rows, []
    data = (place for place in range(len(last) - 1, 0, -1) if last[place].strip() and not _WORDS.match(last[place]))
    end = next(data, 0) + 1
    while end < len(last) and not last[end].strip():
        end += 1
    if end == len(last) or (end < 2 and "\n" not in last[0]):
        return rows, []
    kept = "\n".join([*last[:end], ""])
    cell = next(csv.reader([last[end]], delimiter=separator))[0].strip()
    line = first + kept.count("\n") + 1
    return kept, [f"what follows from line {line} on was left out: {cell!r} is no time"]


def _refuse_short_rows(frame: pl.DataFrame, rows: str, separator: str, first: int, name: str) -> None:
    """Refuses a row that lacks cells and has rows below it: which ones cannot be known, and the others would move.

    A spreadsheet that writes CSV leaves out the empty last cells of 16 rows and more; so many in a row are read.
    """
    ends = frame.to_series(-1).is_null().arg_true()
    lines = pl.Series(rows.removesuffix("\n").split("\n") if len(ends) else [])
    if not len(ends) or len(lines) != frame.height:  # or a cell has several lines
        return
    full = lines.str.strip_chars() != ""
    cells = lines.gather(ends).str.replace_all('"[^"]*"', "").str.count_matches(separator, literal=True) + 1
    short = ends.filter((cells < frame.width) & full.gather(ends)).to_numpy()
    for run in np.split(short, np.flatnonzero(np.diff(short) > 1) + 1) if len(short) else []:
        if len(run) < _BLOCK and full[int(run[-1]) + 1 :].any():
            has = len(next(csv.reader([lines[int(run[0])]], delimiter=separator)))
            what = f"line {first + 1 + run[0]} has {has} cell{'s' * (has > 1)} where the header has {frame.width}"
            raise InvalidInputError(f"{name}: {what}; leave the places of missing values empty, with their separators")


def _fault(rows: str, separator: str, width: int, first: int) -> str:
    """What is wrong with the rows, by the first line that has it."""
    for number, line in enumerate(rows.split("\n"), start=first + 1):
        if line.count('"') % 2:
            return f"line {number} has a quotation mark without its other half; take it out, or double it"
        if '"' not in line and line.count(separator) >= width:
            return f"line {number} has {line.count(separator) + 1} cells where the header has {width}"
    return "its rows do not fit its header; write it again, or hand it in as Parquet"
