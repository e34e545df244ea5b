"""Securities side by side, as a sheet of Bloomberg's has them: each in its own columns, perhaps with its own dates."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import polars as pl

from apps.finance.adapters.columns import TIMES, plain
from apps.finance.adapters.times import Rows

SECURITY = "security"
_AGAIN = re.compile(r" \(\d+\)$")


def names_above(rows: Sequence[Sequence[str]], labels: Sequence[str]) -> list[str]:
    """(C,) what a line above the header calls the security of each column, where ``labels`` (C,) come again.

    Its cells may stand over the first of several columns alone, as merged ones do. Of several lines the first that
    tells all columns of the same label apart counts; empty where there is none.
    """
    starts = [place for place, label in enumerate(labels) if plain(label) in TIMES]
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


def stacked(frame: pl.DataFrame, lines: Rows, names: Sequence[str]) -> tuple[pl.DataFrame, Rows, str]:
    """The securities below each other, the lines of the rows, and what was done in words.

    As it is where there is one column of times, or all of them are the same. ``names`` (C,) are those of
    ``names_above``; without them a security is called as its first column of values.
    """
    labels = frame.columns
    starts = [place for place, label in enumerate(labels) if plain(_AGAIN.sub("", label)) in TIMES]
    called = {plain(_AGAIN.sub("", labels[place])) for place in starts}
    if len(starts) < 2 or len(called) > 1 or all(frame[labels[one]].equals(frame[labels[starts[0]]]) for one in starts):
        return frame, lines, ""
    parts, places = [], []
    for first, end in zip(starts, [*starts[1:], len(labels)], strict=True):
        name = names[first] if names else labels[min(first + 1, end - 1)]
        columns: dict[str, pl.Series] = {}
        for label in labels[first:end]:
            columns.setdefault(_AGAIN.sub("", label).removeprefix(f"{name} "), frame[label])
        there = frame[labels[first]].cast(pl.String).str.strip_chars().fill_null("") != ""
        part = pl.DataFrame({label: cells for label, cells in columns.items() if label})
        parts.append(part.filter(there).with_columns(pl.lit(name).alias(SECURITY)))
        places.append(lines[there.to_numpy()])
    said = f"{len(parts)} securities stand side by side, each with its own dates, and were read one by one"
    return pl.concat(parts, how="diagonal_relaxed"), np.concatenate(places), said
