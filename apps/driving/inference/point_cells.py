"""The points of a sweep by square cells, seen from above: those near a box are found without a look at all of them."""

from __future__ import annotations

import numpy as np

from apps.driving.types import Floats, within

CELL_M, MAX_CELLS = 2.0, 500
"""Side of the cells, and how many there are along an axis at most."""


class PointCells:
    """Points for places that are known beforehand.

    ``begin`` and ``end`` (N, 2) are the corners of N places, x and y in metres, of which at least one is there; points
    outside of all of them or not from ``lowest`` to ``highest`` may be left out.
    """

    def __init__(self, points_N3: Floats, begin: Floats, end: Floats, lowest: float, highest: float) -> None:
        low, high = begin.min(axis=0), end.max(axis=0)
        cell_m = np.float32(max(CELL_M, float((high - low).max()) / MAX_CELLS))
        rows, columns = (int(count) + 1 for count in (high - low) // cell_m)
        high = low + np.array((rows, columns), np.float32) * cell_m
        held = points_N3[within(points_N3, (*low, lowest, *high, highest)), :3]
        place = ((held[:, :2] - low) / cell_m).astype(np.int32)
        cells = np.minimum(place[:, 0], rows - 1) * columns + np.minimum(place[:, 1], columns - 1)
        self._points = held[np.argsort(cells, kind="stable")]
        self._ends = np.concatenate([[0], np.cumsum(np.bincount(cells, minlength=rows * columns))]).tolist()
        first, last = (((edge - low) / cell_m).astype(int) for edge in (begin, end))
        self._first, self._last = first.tolist(), np.minimum(last, (rows - 1, columns - 1)).tolist()
        self._columns = columns

    def near(self, number: int) -> Floats:
        """The points (M, 3) of the cells that a place touches: all that lie in it, and some about it."""
        (row, column), (last_row, last_column) = self._first[number], self._last[number]
        starts = range(row * self._columns, last_row * self._columns + 1, self._columns)
        spans = [(self._ends[start + column], self._ends[start + last_column + 1]) for start in starts]
        return np.concatenate([self._points[start:stop] for start, stop in spans])
