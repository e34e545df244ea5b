"""Calculations over past rows: reference windows, trailing means, changes. Nothing here uses later rows."""

from __future__ import annotations

import numpy as np

from apps.finance.datasets.windows import last_seen
from apps.finance.types import Floats

BLOCK = 64
"""Statistics of the past are updated every this many rows."""
GUARD = 128
"""The rows that separate a row from the past it is compared with."""
_MEMORY = 2000


def reference_rows(start: int, memory: int) -> slice:
    """The rows with which a block from ``start`` on is compared: up to ``memory`` rows, ending 128 rows before it.

    The distance keeps a long event from being compared with its own beginning. In the first 256 rows it is shorter.
    """
    end = max(start - GUARD, min(start, GUARD))
    return slice(max(0, end - memory), end)


def trailing_mean(values: Floats, rows: int) -> Floats:
    """(N,) the mean of the finite values among the last ``rows``; NaN if fewer than half of them are finite."""
    finite = np.isfinite(values)
    sums = np.concatenate([np.zeros(rows), np.cumsum(np.where(finite, values, 0))])
    counts = np.concatenate([np.zeros(rows), np.cumsum(finite)])
    number = counts[rows:] - counts[:-rows]
    return np.where(number >= rows / 2, (sums[rows:] - sums[:-rows]) / np.maximum(number, 1), np.nan)


def change(values: Floats, rows: int) -> Floats:
    """(N,) the change from the latest value ``rows`` rows before; NaN if the row is missing."""
    earlier: Floats = np.concatenate([np.full(rows, np.nan), last_seen(values)[:-rows]])[: len(values)]
    changed: Floats = values - earlier
    return changed


def block_starts(first: int, length: int, rows: int = BLOCK) -> range:
    """The start rows of the blocks that contain a row from ``first`` on."""
    return range(first // rows * rows, length, rows)


def usual_change(values: Floats, absolute: Floats, first: int = 0) -> Floats:
    """(N,) the mean absolute change in up to 2000 earlier rows, at least a millionth of the mean absolute value.

    ``absolute`` (N,) is the absolute change from row to row. Only rows from ``first`` on are guaranteed to be filled.
    """
    typical = np.full(len(values), np.nan)
    for start in block_starts(first, len(values)):
        rows = reference_rows(start, _MEMORY)
        finite = absolute[rows][np.isfinite(absolute[rows])]
        if len(finite) >= 30:
            typical[start : start + BLOCK] = max(finite.mean(), 1e-6 * np.nanmean(np.abs(values[rows])), 1e-9)
    return typical


def running_range(values: Floats, rows: int) -> tuple[Floats, Floats]:
    """(N,) the minimum and (N,) the maximum of up to ``rows`` values before each row; NaN if there is none."""
    finite = np.isfinite(values)
    extremes = []
    for sign in (-1.0, 1.0):
        padded = np.concatenate([[-np.inf], np.where(finite, sign * values, -np.inf)[:-1]])
        if len(values) > rows:
            from scipy.ndimage import maximum_filter1d

            # A window of ``rows`` values that ends at each row; the padding shifts it to end at the row before.
            maxima = maximum_filter1d(padded, rows, mode="constant", cval=-np.inf, origin=(rows - 1) // 2)
        else:
            maxima = np.maximum.accumulate(padded)
        extremes.append(np.where(np.isfinite(maxima), sign * maxima, np.nan))
    return extremes[0], extremes[1]
