"""When the level left its former median: a change-point estimate, made at the row that detected the change."""

from __future__ import annotations

import numpy as np

from apps.finance.types import Floats

_SEARCH_ROWS = 256
_REFERENCE_ROWS = 512
"""The former median is taken over this many rows before the search window."""
LOOKBACK_ROWS = _SEARCH_ROWS + _REFERENCE_ROWS
"""An estimate depends on this many rows."""
_MIN_ROWS = 64
_MIN_AGE = 4


def onset(values: Floats, row: int) -> int | None:
    """The row since which the level has been away from its former median, estimated from ``values`` (N,) up to ``row``.

    The most likely of up to 256 rows before ``row`` by the generalised likelihood ratio (Hinkley, 1970; Willsky and
    Jones, 1976) of a step at that row, or of a linear drift from it, whichever explains more of the deviations from the
    median of up to 512 earlier rows. None if the level left the median within the last 4 rows, as after a sudden step,
    or more than 256 rows ago, as in a random walk, and if there is too little history. Causal.
    """
    first = max(row - _SEARCH_ROWS + 1, 0)
    reference = values[max(row - LOOKBACK_ROWS + 1, 0) : first]
    reference = reference[np.isfinite(reference)]
    if len(reference) < _MIN_ROWS:
        return None
    deviations = (values[first : row + 1] - np.median(reference))[::-1]
    # Rows are reversed, the latest first: a drift that began n rows ago is proportional to the rows since its start.
    age, is_finite = np.arange(len(deviations)), np.isfinite(deviations)
    deviations, n = np.where(is_finite, deviations, 0.0), age + 1
    number, ages, squares = np.cumsum(is_finite), np.cumsum(is_finite * age), np.cumsum(is_finite * age**2)
    total = np.cumsum(deviations)
    drift_sum = n * total - np.cumsum(deviations * age)
    step = total**2 / np.maximum(number, 1)
    drift = drift_sum**2 / np.maximum(n**2 * number - 2 * n * ages + squares, 1)
    rows_ago = int(np.argmax(np.maximum(step, drift)))
    return row - rows_ago if _MIN_AGE <= rows_ago < _SEARCH_ROWS - 1 else None
