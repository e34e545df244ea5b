"""Covers the needed parts of an image with boxes, by splitting recursively where the two parts are smallest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Box: TypeAlias = "tuple[NDArray[np.int64], NDArray[np.int64]]"
"""First and end block along x, y, z; the end is exclusive."""

_MIN_SAVING = 0.05
"""A box that is small enough is only split if that saves at least this share of it."""
_OVERLAP_COST = 0.06
"""Estimated share that each further split of a part adds, because neighbours overlap."""


def cut(needed: NDArray[np.bool_], max_blocks: int, min_sides: Sequence[int], overlaps: Sequence[int]) -> list[Box]:
    """Boxes of at most ``max_blocks`` blocks that cover all ``needed`` blocks (X, Y, Z) of an image.

    Each box has at least ``min_sides`` blocks along x, y, z, or the image's size. The two parts of a split overlap by
    ``overlaps`` blocks. The search is greedy: each split is the best over all axes and positions, regardless of the
    following ones. A box that no split makes smaller may exceed ``max_blocks``.
    """
    floor = np.minimum(min_sides, needed.shape)
    boxes: list[Box] = []
    queue = [(np.zeros(3, np.int64), np.array(needed.shape, np.int64))] if needed.any() else []
    while queue:
        low, high = queue.pop()
        parts = _best_split(needed[_window(low, high)], max_blocks, floor, overlaps)
        if parts:
            queue += [(low + first, low + last) for first, last in reversed(parts)]
            continue
        first, last = _extents(needed[_window(low, high)], 0)
        low, high = low + first.min(axis=0), low + last.max(axis=0)
        size = np.maximum(high - low, floor)
        start = np.clip(low - (size - (high - low)) // 2, 0, needed.shape - size)
        boxes.append((start, start + size))
    return boxes


def _best_split(
    region: NDArray[np.bool_], max_blocks: int, floor: NDArray[np.int64], overlaps: Sequence[int]
) -> list[Box]:
    """The two parts of a region after the split that leaves the fewest blocks; empty if no split helps."""
    low, high = _extents(region, 0)
    whole = int(_blocks((low.min(axis=0), high.max(axis=0)), floor))
    fewest = (1 - _MIN_SAVING) * whole if whole <= max_blocks else np.inf
    parts: list[Box] = []
    for axis, overlap in enumerate(overlaps):
        low, high = _extents(region, axis)
        # First block of the second part; the first part ends ``overlap`` blocks later.
        starts = np.arange(1, region.shape[axis] - overlap)
        ends = starts + overlap - 1
        before = (np.minimum.accumulate(low)[ends], np.maximum.accumulate(high)[ends])
        after = (np.minimum.accumulate(low[::-1])[::-1][starts], np.maximum.accumulate(high[::-1])[::-1][starts])
        blocks = np.stack([_blocks(before, floor), _blocks(after, floor)])
        cost = (blocks * (1 + _OVERLAP_COST * np.maximum(0, np.ceil(blocks / max_blocks) - 1))).sum(axis=0)
        cost[(blocks >= whole).any(axis=0)] = np.inf
        if len(cost) and cost.min() < fewest:
            best = int(cost.argmin())
            fewest = cost[best]
            both = zip((before, after), blocks[:, best], strict=True)
            parts = [(first[best], last[best]) for (first, last), count in both if count]
    return parts


def _blocks(box: Box, floor: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of blocks of boxes (..., 3) enlarged to the minimum sides ``floor``; 0 for empty boxes."""
    size = box[1] - box[0]
    return np.where((size > 0).all(axis=-1), np.maximum(size, floor).prod(axis=-1), 0)


def _extents(region: NDArray[np.bool_], axis: int) -> Box:
    """The bounding box (N, 3) of the needed blocks in each plane along ``axis``; an empty one ends before its start."""
    length = region.shape[axis]
    low, high = np.empty((length, 3), np.int64), np.empty((length, 3), np.int64)
    for along in range(3):
        if along == axis:
            plane = np.diag(np.moveaxis(region, axis, 0).reshape(length, -1).any(axis=1))
        else:
            plane = np.asarray(np.moveaxis(region, (axis, along), (0, 1)).any(axis=2))
        is_needed = plane.any(axis=1)
        low[:, along] = np.where(is_needed, plane.argmax(axis=1), plane.shape[1])
        high[:, along] = np.where(is_needed, plane.shape[1] - plane[:, ::-1].argmax(axis=1), 0)
    return low, high


def _window(low: NDArray[np.int64], high: NDArray[np.int64]) -> tuple[slice, ...]:
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
