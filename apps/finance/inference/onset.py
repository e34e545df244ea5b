"""Since when the level has been away from its former median: a change-point estimate at the row that noticed it."""

from __future__ import annotations

import numpy as np

from apps.finance.types import Floats

_LOOKS_BACK = 256
_BEFORE = 512
"""The former median is that of so many rows before those that are looked through."""
REACH = _LOOKS_BACK + _BEFORE
"""An estimate depends on so many rows."""
_MIN_ROWS = 64
_MIN_EARLIER = 4


def onset(values: Floats, row: int) -> int | None:
    """The row since which the level has been away from its former median, as far as ``values`` (N,) to ``row`` tell.

    The most likely of up to 256 rows before ``row`` by the generalised likelihood ratio (Hinkley, 1970; Willsky and
    Jones, 1976) of a step there, or of a straight drift from there on, whichever explains more of the departures from
    the median of up to 512 rows before those. None where the level has left it within the last 4 rows, as after a
    sudden step, for longer than the 256 rows, as in a random walk, and where there is too little history. Causal.
    """
    first = max(row - _LOOKS_BACK + 1, 0)
    former = values[max(row - REACH + 1, 0) : first]
    former = former[np.isfinite(former)]
    if len(former) < _MIN_ROWS:
        return None
    departures = (values[first : row + 1] - np.median(former))[::-1]
    # From the latest row back: a drift that began n rows ago is as far away as the row is from its beginning.
    age, seen = np.arange(len(departures)), np.isfinite(departures)
    departures, n = np.where(seen, departures, 0.0), age + 1
    number, ages, squares = np.cumsum(seen), np.cumsum(seen * age), np.cumsum(seen * age**2)
    total = np.cumsum(departures)
    along = n * total - np.cumsum(departures * age)
    step = total**2 / np.maximum(number, 1)
    drift = along**2 / np.maximum(n**2 * number - 2 * n * ages + squares, 1)
    earlier = int(np.argmax(np.maximum(step, drift)))
    return row - earlier if _MIN_EARLIER <= earlier < _LOOKS_BACK - 1 else None
