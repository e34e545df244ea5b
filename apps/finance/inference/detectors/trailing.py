"""Arithmetic over the rows until now: what is past, trailing means, changes. Nothing here looks ahead."""

from __future__ import annotations

import numpy as np

from apps.finance.datasets.windows import last_seen
from apps.finance.types import Floats

BLOCK = 64
"""What is known of the past is renewed every so many rows."""
GUARD = 128
"""The past ends so many rows ago."""
_MEMORY = 2000


def past(start: int, memory: int) -> slice:
    """The rows that a block from ``start`` on is compared with: up to ``memory`` rows, to 128 rows before it.

    So an event that goes on is not measured by its own beginning. The first 256 rows cannot wait so long.
    """
    end = max(start - GUARD, min(start, GUARD))
    return slice(max(0, end - memory), end)


def trailing_mean(values: Floats, rows: int) -> Floats:
    """(N,) the mean of the last ``rows`` values that there are; NaN until half of them are there."""
    seen = np.isfinite(values)
    sums = np.concatenate([np.zeros(rows), np.cumsum(np.where(seen, values, 0))])
    counts = np.concatenate([np.zeros(rows), np.cumsum(seen)])
    number = counts[rows:] - counts[:-rows]
    return np.where(number >= rows / 2, (sums[rows:] - sums[:-rows]) / np.maximum(number, 1), np.nan)


def change(values: Floats, rows: int) -> Floats:
    """(N,) the change from the value seen ``rows`` rows before; NaN where the row is missing."""
    before: Floats = np.concatenate([np.full(rows, np.nan), last_seen(values)[:-rows]])[: len(values)]
    changed: Floats = values - before
    return changed


def blocks(first: int, length: int, rows: int = BLOCK) -> range:
    """Where the blocks begin that have a row from ``first`` on."""
    return range(first // rows * rows, length, rows)


def usual_change(values: Floats, absolute: Floats, first: int = 0) -> Floats:
    """(N,) the mean absolute change in up to 2000 earlier rows, a millionth of the mean absolute value at the least.

    ``absolute`` (N,) is the absolute change from row to row. Only rows from ``first`` on are sure to be there.
    """
    usual = np.full(len(values), np.nan)
    for start in blocks(first, len(values)):
        rows = past(start, _MEMORY)
        seen = absolute[rows][np.isfinite(absolute[rows])]
        if len(seen) >= 30:
            usual[start : start + BLOCK] = max(seen.mean(), 1e-6 * np.nanmean(np.abs(values[rows])), 1e-9)
    return usual


def running_range(values: Floats, rows: int) -> tuple[Floats, Floats]:
    """(N,) the smallest and (N,) the largest of up to ``rows`` values before each row; NaN where there is none."""
    seen = np.isfinite(values)
    found = []
    for sign in (-1.0, 1.0):
        padded = np.concatenate([[-np.inf], np.where(seen, sign * values, -np.inf)[:-1]])
        if len(values) > rows:
            from scipy.ndimage import maximum_filter1d

            # A window of ``rows`` values that ends with the row, of which the padding has shifted in the one before.
            largest = maximum_filter1d(padded, rows, mode="constant", cval=-np.inf, origin=(rows - 1) // 2)
        else:
            largest = np.maximum.accumulate(padded)
        found.append(np.where(np.isfinite(largest), sign * largest, np.nan))
    return found[0], found[1]
