"""Boxes around what is needed of an image: cut where two parts hold the fewest voxels, until each is small enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Box: TypeAlias = "tuple[NDArray[np.int64], NDArray[np.int64]]"
"""Blocks along x, y, z: where a box begins, and where it ends."""

_GAIN = 0.05
"""A box that is small enough is cut where that saves so much of it."""
_CUT_AGAIN = 0.06
"""What each further cut of a part that is too large is taken to add to it, since neighbours overlap."""


def cut(needed: NDArray[np.bool_], most: int, least: Sequence[int], shared: Sequence[int]) -> list[Box]:
    """Boxes of at most ``most`` blocks that hold all ``needed`` blocks (X, Y, Z) of an image.

    Each is at least ``least`` blocks long along x, y, z, or as long as the image. The two parts of a box share
    ``shared`` blocks. Each cut is the best of all axes and places by itself: what the next ones will save is not looked
    for. A box that no cut makes smaller stays as large as it is.
    """
    floor = np.minimum(least, needed.shape)
    found: list[Box] = []
    waiting = [(np.zeros(3, np.int64), np.array(needed.shape, np.int64))] if needed.any() else []
    while waiting:
        low, high = waiting.pop()
        parts = _best_cut(needed[_window(low, high)], most, floor, shared)
        if parts:
            waiting += [(low + first, low + last) for first, last in reversed(parts)]
            continue
        first, last = _extents(needed[_window(low, high)], 0)
        low, high = low + first.min(axis=0), low + last.max(axis=0)
        size = np.maximum(high - low, floor)
        start = np.clip(low - (size - (high - low)) // 2, 0, needed.shape - size)
        found.append((start, start + size))
    return found


def _best_cut(region: NDArray[np.bool_], most: int, floor: NDArray[np.int64], shared: Sequence[int]) -> list[Box]:
    """The two parts of a region after the cut that leaves the fewest blocks; none where it is well as it is."""
    low, high = _extents(region, 0)
    whole = int(_blocks((low.min(axis=0), high.max(axis=0)), floor))
    fewest = (1 - _GAIN) * whole if whole <= most else np.inf
    parts: list[Box] = []
    for axis, overlap in enumerate(shared):
        low, high = _extents(region, axis)
        # The places at which the second part begins; the first one ends so many blocks later.
        places = np.arange(1, region.shape[axis] - overlap)
        ends = places + overlap - 1
        before = (np.minimum.accumulate(low)[ends], np.maximum.accumulate(high)[ends])
        after = (np.minimum.accumulate(low[::-1])[::-1][places], np.maximum.accumulate(high[::-1])[::-1][places])
        blocks = np.stack([_blocks(before, floor), _blocks(after, floor)])
        cost = (blocks * (1 + _CUT_AGAIN * np.maximum(0, np.ceil(blocks / most) - 1))).sum(axis=0)
        cost[(blocks >= whole).any(axis=0)] = np.inf
        if len(cost) and cost.min() < fewest:
            place = int(cost.argmin())
            fewest = cost[place]
            both = zip((before, after), blocks[:, place], strict=True)
            parts = [(first[place], last[place]) for (first, last), count in both if count]
    return parts


def _blocks(box: Box, floor: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many blocks boxes (..., 3) hold that are made as long as ``floor``; none that hold nothing needed."""
    size = box[1] - box[0]
    return np.where((size > 0).all(axis=-1), np.maximum(size, floor).prod(axis=-1), 0)


def _extents(region: NDArray[np.bool_], axis: int) -> Box:
    """The boxes (n, 3) around what is needed in each plane along ``axis``; an empty one ends before it begins."""
    length = region.shape[axis]
    low, high = np.empty((length, 3), np.int64), np.empty((length, 3), np.int64)
    for along in range(3):
        if along == axis:
            plane = np.diag(np.moveaxis(region, axis, 0).reshape(length, -1).any(axis=1))
        else:
            plane = np.asarray(np.moveaxis(region, (axis, along), (0, 1)).any(axis=2))
        some = plane.any(axis=1)
        low[:, along] = np.where(some, plane.argmax(axis=1), plane.shape[1])
        high[:, along] = np.where(some, plane.shape[1] - plane[:, ::-1].argmax(axis=1), 0)
    return low, high


def _window(low: NDArray[np.int64], high: NDArray[np.int64]) -> tuple[slice, ...]:
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
