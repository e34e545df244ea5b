"""Securities side by side, as in Bloomberg's sheets: each in its own columns, sometimes with its own dates."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import polars as pl

from apps.finance.adapters.columns import TIMES, normalised_label
from apps.finance.adapters.times import Rows

SECURITY = "security"
_DUPLICATE_SUFFIX = re.compile(r" \(\d+\)$")


def security_names(rows: Sequence[Sequence[str]], labels: Sequence[str]) -> list[str]:
    """(C,) the security's name for each column, from a line above the header, if ``labels`` (C,) repeat.

    A name may stand only above the first of its columns, as a merged cell does. The first line whose names make all
    repeated labels unique is used; an empty list if there is none.
    """
    starts = [index for index, label in enumerate(labels) if normalised_label(label) in TIMES]
    for row in rows:
        cells = [*row, *[""] * len(labels)][: len(labels)]
        if len(starts) > 1:
            parts = zip(starts, [*starts[1:], len(labels)], strict=True)
            names = [next((cell for cell in reversed(cells[first:end]) if cell), "") for first, end in parts]
            if all(re.search(r"[^\W\d_]", name) for name in names) and len({*names}) == len(names):
                return [""] * starts[0] + list(np.repeat(names, np.diff([*starts, len(labels)])))
            continue
        filled: list[str] = []
        for cell in cells:
            filled.append(cell or (filled[-1] if filled else ""))
        pairs = [(name, label) for name, label in zip(filled, labels, strict=True) if label]
        if len({*pairs}) == len(pairs) and any(cells[1:]):
            return filled
    return []


def stack_securities(frame: pl.DataFrame, lines: Rows, names: Sequence[str]) -> tuple[pl.DataFrame, Rows, str]:
    """The securities below each other, the line numbers of the rows, and a note about it.

    Unchanged if there is one column of times, or if all of them are equal. ``names`` (C,) are from ``security_names``;
    without them a security is named after its first value column.
    """
    labels = frame.columns
    starts = [
        index for index, label in enumerate(labels) if normalised_label(_DUPLICATE_SUFFIX.sub("", label)) in TIMES
    ]
    titles = {normalised_label(_DUPLICATE_SUFFIX.sub("", labels[index])) for index in starts}
    if (
        len(starts) < 2
        or len(titles) > 1
        or all(frame[labels[start]].equals(frame[labels[starts[0]]]) for start in starts)
    ):
        return frame, lines, ""
    parts, line_numbers = [], []
    for first, end in zip(starts, [*starts[1:], len(labels)], strict=True):
        name = names[first] if names else labels[min(first + 1, end - 1)]
        columns: dict[str, pl.Series] = {}
        for label in labels[first:end]:
            columns.setdefault(_DUPLICATE_SUFFIX.sub("", label).removeprefix(f"{name} "), frame[label])
        has_time = frame[labels[first]].cast(pl.String).str.strip_chars().fill_null("") != ""
        part = pl.DataFrame({label: cells for label, cells in columns.items() if label})
        parts.append(part.filter(has_time).with_columns(pl.lit(name).alias(SECURITY)))
        line_numbers.append(lines[has_time.to_numpy()])
    note = f"the file has {len(parts)} securities side by side, each with its own dates; they were read separately"
    return pl.concat(parts, how="diagonal_relaxed"), np.concatenate(line_numbers), note
