"""CSV files to a ``Series``, and back. Separator, decimal comma, quotes, encoding are found out."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

from apps.finance.data.table import to_series
from apps.finance.types import Series, iso_utc
from shared.refusal import Refusal

LARGEST = 512 * 1024 * 1024
_SEPARATORS = (",", ";", "\t", "|")


def read_csv(path: Path, *, column: str | None = None) -> Series:
    """The series in a CSV file; see ``to_series`` for what is understood and refused."""
    import polars as pl

    name = path.name
    if not path.is_file():
        raise Refusal(f"{name} does not exist")
    if path.stat().st_size > LARGEST:
        raise Refusal(f"{name} is larger than {LARGEST >> 20} MiB; split it by time, or hand it in as Parquet")
    text = _decode(path.read_bytes(), name)
    header = next((line for line in text.splitlines() if line.strip()), "")
    if not header:
        raise Refusal(f"{name} is empty; it needs a header line such as 'timestamp,value' and rows")
    separator = max(_SEPARATORS, key=header.count)
    if header.count(separator) == 0:
        raise Refusal(
            f"{name} has a single column ({header.strip()[:40]!r}); it needs a time column and a value column"
        )
    try:
        frame = pl.read_csv(
            io.BytesIO(text.lstrip("\r\n ").encode()),
            separator=separator,
            infer_schema=False,
            truncate_ragged_lines=False,
            raise_if_empty=False,
        )
    except pl.exceptions.PolarsError as error:
        raise Refusal(f"{name} is not a readable CSV file: {_fault(text, separator) or error}") from error
    frame = frame.rename({label: label.strip().strip("\ufeff") for label in frame.columns})
    if _looks_like_data(frame.columns):
        raise Refusal(f"{name} has no header line; put one such as 'timestamp,value' before the first row")
    return to_series(frame, name=name, column=column, decimal_comma=separator == ";")


def write_csv(path: Path, series: Series) -> None:
    """Writes ``timestamp`` (ISO 8601, UTC) and all value columns; a missing value is an empty cell."""
    lines = [",".join(["timestamp", *series.values])]
    for row, time in enumerate(series.times_ns.tolist()):
        cells = (float(values[row]) for values in series.values.values())
        lines.append(",".join([iso_utc(time), *("" if cell != cell else repr(cell) for cell in cells)]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _decode(content: bytes, name: str) -> str:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", errors="replace")
    if b"\x00" in content[:4096]:
        raise Refusal(f"{name} is not text; hand in a CSV file, or a Parquet file with the ending .parquet")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("gb18030" if _chinese_header(content) else "cp1252", errors="replace")


def _chinese_header(content: bytes) -> bool:
    """Whether the header makes sense as GB18030: two common hanzi in a row, and beside hanzi only ASCII and marks.

    Common are the 3,755 hanzi of GB2312's first level; accents of Western headers rarely fall on two of them.
    """
    line = next((line for line in content.splitlines() if line.strip()), b"")
    try:
        header = line.decode("gb18030")
    except UnicodeDecodeError:
        return False
    plausible = all(
        mark.isascii() or "\u4e00" <= mark <= "\u9fff" or "\u3000" <= mark <= "\u303f" or "\uff00" <= mark <= "\uffef"
        for mark in header
    )
    return plausible and any(_common(one) and _common(other) for one, other in itertools.pairwise(header))


def _common(mark: str) -> bool:
    code = mark.encode("gb2312", errors="ignore")
    return len(code) == 2 and 0xB0 <= code[0] <= 0xD7


def _looks_like_data(labels: list[str]) -> bool:
    def number(text: str) -> bool:
        try:
            float(text.replace(",", ".").removesuffix("_duplicated_0"))
        except ValueError:
            return False
        return True

    return sum(number(label) for label in labels) >= max(1, len(labels) - 1)


def _fault(text: str, separator: str) -> str:
    lines = text.splitlines()
    width = lines[0].count(separator)
    for number, line in enumerate(lines, start=1):
        if line.strip() and '"' not in line and line.count(separator) > width:
            return f"line {number} has {line.count(separator) + 1} cells where the header has {width + 1}"
    return ""
