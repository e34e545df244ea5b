"""A grid index of a sweep's points in the bird's-eye view, which finds the points near a box without scanning all."""

from __future__ import annotations

import numpy as np

from apps.driving.types import Floats, within

CELL_M, MAX_CELLS = 2.0, 500
"""The cells' side in metres, and their maximum number along an axis."""


class PointCells:
    """An index for N >= 1 rectangles that are known in advance.

    ``begin`` and ``end`` (N, 2) are the rectangles' minimum and maximum corners, x and y in metres. Points outside all
    rectangles, or with z outside ``lowest`` to ``highest``, may be dropped.
    """

    def __init__(self, points_N3: Floats, begin: Floats, end: Floats, lowest: float, highest: float) -> None:
        low, high = begin.min(axis=0), end.max(axis=0)
        cell_m = np.float32(max(CELL_M, float((high - low).max()) / MAX_CELLS))
        rows, columns = (int(count) + 1 for count in (high - low) // cell_m)
        high = low + np.array((rows, columns), np.float32) * cell_m
        kept = points_N3[within(points_N3, (*low, lowest, *high, highest)), :3]
        cell = ((kept[:, :2] - low) / cell_m).astype(np.int32)
        cells = np.minimum(cell[:, 0], rows - 1) * columns + np.minimum(cell[:, 1], columns - 1)
        self._points = kept[np.argsort(cells, kind="stable")]
        self._ends = np.concatenate([[0], np.cumsum(np.bincount(cells, minlength=rows * columns))]).tolist()
        first, last = (((edge - low) / cell_m).astype(int) for edge in (begin, end))
        self._first, self._last = first.tolist(), np.minimum(last, (rows - 1, columns - 1)).tolist()
        self._columns = columns

    def near(self, number: int) -> Floats:
        """The points (M, 3) of the cells that rectangle ``number`` touches: all points in it, and some around it."""
        (row, column), (last_row, last_column) = self._first[number], self._last[number]
        starts = range(row * self._columns, last_row * self._columns + 1, self._columns)
        spans = [(self._ends[start + column], self._ends[start + last_column + 1]) for start in starts]
        return np.concatenate([self._points[start:stop] for start, stop in spans])
