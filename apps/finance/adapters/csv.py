"""CSV files to ``Series``, and back. Encoding, separator, header and decimal mark are found out where not named."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from apps.finance.adapters.encoding import decode
from apps.finance.adapters.layout import Layout, find_layout
from apps.finance.adapters.options import NOTHING_SAID, TableOptions
from apps.finance.adapters.table import TRUTH, Contents, only, to_contents
from apps.finance.types import Series, Window, iso_utc
from shared.errors import InvalidInputError

if TYPE_CHECKING:
    import polars

LARGEST = 512 * 1024 * 1024


def read_csv_contents(path: Path, options: TableOptions = NOTHING_SAID) -> Contents:
    """All series in a CSV file; see ``find_layout`` and ``to_contents`` for what is understood and refused."""
    name = path.name
    if not path.is_file():
        raise InvalidInputError(f"{name} does not exist")
    if path.stat().st_size > LARGEST:
        raise InvalidInputError(
            f"{name} is larger than {LARGEST >> 20} MiB; split it by time, or hand it in as Parquet"
        )
    text = decode(path.read_bytes(), name)
    layout = find_layout(text, name)
    frame = _table(text, layout, name)
    lines = np.arange(layout.first_line, layout.first_line + frame.height)
    torn = _torn(text, layout, frame)
    if torn:
        frame, lines = frame.head(frame.height - 1), lines[:-1]
        layout = replace(layout, notes=(*layout.notes, torn))
    contents = to_contents(frame, name=name, options=options, semicolons=layout.separator == ";", lines=lines)
    return replace(contents, notes=(*layout.notes, *contents.notes))


def read_csv(path: Path, options: TableOptions = NOTHING_SAID) -> Series:
    """The one series in a CSV file; refuses several."""
    return only(read_csv_contents(path, options), path.name)


def write_csv(path: Path, series: Series, truth: Sequence[Window] = ()) -> None:
    """Writes ``timestamp`` (ISO 8601, UTC) and all value columns; a missing value is an empty cell.

    ``truth`` are windows that are known of a synthetic series: a last column then says what is true of each row.
    """
    lines = [",".join(["timestamp", *series.values, *([TRUTH] if truth else [])])]
    for row, time in enumerate(series.times_ns.tolist()):
        cells = ["" if cell != cell else repr(cell) for cell in (float(v[row]) for v in series.values.values())]
        known = [next((one.kind for one in truth if one.start_ns <= time <= one.end_ns), "")] if truth else []
        lines.append(",".join([iso_utc(time), *cells, *known]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _table(text: str, layout: Layout, name: str) -> polars.DataFrame:
    import polars as pl

    if not text[layout.offset :].strip():
        return pl.DataFrame({label: pl.Series([], dtype=pl.String) for label in layout.labels})
    # A header of our own says how wide the table is, even where its first row is shorter.
    header = layout.separator.join(f"column{number}" for number in range(len(layout.labels)))
    try:
        frame = pl.read_csv(
            io.BytesIO(f"{header}\n{text[layout.offset :]}".encode(errors="replace")),
            separator=layout.separator,
            infer_schema=False,
            truncate_ragged_lines=False,
        )
        return frame.rename(dict(zip(frame.columns, layout.labels, strict=True)))
    except pl.exceptions.PolarsError as error:
        raise InvalidInputError(f"{name} is not a readable CSV file: {_fault(text, layout)}") from error


def _torn(text: str, layout: Layout, frame: polars.DataFrame) -> str:
    """What there is to say of a last line that ends before its last cell, where the others do not: the file was cut."""
    if text.endswith("\n") or frame.height < 3:
        return ""
    last, *before = (line.count(layout.separator) for line in reversed(text.rsplit("\n", 3)[1:]))
    if last >= min(before) or last == 0:
        return ""
    number, cells = layout.first_line + frame.height - 1, f"{last + 1} of {len(layout.labels)} cells"
    return f"line {number}, the last, was left out: it has {cells}, as where a file is cut"


def _fault(text: str, layout: Layout) -> str:
    """What is wrong with the rows, by the first line that has it."""
    width = len(layout.labels)
    for number, line in enumerate(text[layout.offset :].splitlines(), start=layout.first_line):
        if line.strip() and '"' not in line and line.count(layout.separator) >= width:
            return f"line {number} has {line.count(layout.separator) + 1} cells where the header has {width}"
        if line.count('"') % 2:
            return f"line {number} has a quotation mark without its other half; take it out, or double it"
    return "its rows do not fit its header; write it again, or hand it in as Parquet"
