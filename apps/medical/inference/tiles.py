"""The tiles in which a network sees an image that is too large for it at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from apps.medical.inference.grid import triple

Voxels: TypeAlias = "tuple[int, int, int]"
"""Numbers of voxels along x, y, z."""
Mask: TypeAlias = "NDArray[np.bool_]"

TILE_COST = 1 << 17
"""What a tile costs beyond its voxels, in voxels."""

Corner: TypeAlias = "NDArray[np.integer]"


class Tile(NamedTuple):
    """Voxels of an image: where they begin, and how many there are along x, y, z."""

    start: Voxels
    size: Voxels


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiling:
    """Tiles of ``size`` voxels along x, y, z; neighbours share ``margin`` voxels. ``batch`` or more go through at once.

    Size and margin must be whole multiples of the network's strides, so that neighbours' maps align.
    """

    size: Voxels = (160, 160, 96)
    margin: Voxels = (16, 16, 8)
    batch: int = 2

    def fitted(self, image: Sequence[int], divisible: Sequence[int]) -> Tiling:
        """As few tiles as these for an image of that size, and each as small as the image allows."""
        sizes = []
        for length, tile, shared, unit in zip(image, self.size, self.margin, divisible, strict=True):
            count = max(1, -(-(length - shared) // (tile - shared)))
            sizes.append(-(-(length + (count - 1) * shared) // (count * unit)) * unit)
        return replace(self, size=(sizes[0], sizes[1], sizes[2]))

    def tiles(self, image: Sequence[int], divisible: Sequence[int]) -> list[Tile]:
        """The tiles of an image in MONAI's order, the last ones beyond its end where it is no multiple of the units."""
        axes = []
        for length, unit, tile, shared in zip(image, divisible, self.size, self.margin, strict=True):
            last = max(-(-length // unit) * unit - tile, 0)
            interval = max(tile - shared, 1)
            axes.append([min(n * interval, last) for n in range(-(-last // interval) + 1)])
        return [Tile((x, y, z), self.size) for x, y, z in product(*axes)]

    def around(self, needed: Mask, divisible: Sequence[int]) -> list[Tile]:
        """Boxes that hold all ``needed`` blocks, which are of ``divisible`` voxels, with little beside them.

        The box around all is cut in two, each part the box around what it holds, and so on, where that is less to
        compute or a box has more voxels than a batch of tiles; never into parts of less than half a tile. Where what is
        needed goes on beyond a cut, the parts share the margin.
        """
        if not needed.any():
            return []
        unit = np.array(divisible)
        most = self.batch * int(np.prod(self.size))
        search = _Search(
            needed, np.array(self.margin) // unit, np.array(self.size) // (2 * unit), int(np.prod(unit)), most
        )
        _, boxes = search.cut(*search.trimmed(np.zeros(3, int), np.array(needed.shape)))
        return [
            Tile(triple((low * unit).tolist()), triple(((search.widened(low, high) - low) * unit).tolist()))
            for low, high in boxes
        ]


@dataclass(frozen=True, slots=True)
class _Search:
    """For the cuts of a box that spare most at once. Corners are in blocks of ``voxels`` voxels."""

    needed: Mask
    shared: Corner
    least: Corner
    voxels: int
    most: int

    def cut(self, low: Corner, high: Corner) -> tuple[float, list[tuple[Corner, Corner]]]:
        """The cost of a box, or of the parts into which it is cut, and these parts."""
        volume = int((self.widened(low, high) - low).prod()) * self.voxels
        whole = float(volume + TILE_COST), [(low, high)]
        cuts = [one for axis in range(3) for one in self._cuts(low, high, axis)]
        cost, axis, at = min(cuts, default=(np.inf, 0, 0))
        if not cuts or (volume <= self.most and whole[0] <= cost):
            return whole
        end, start = high.copy(), low.copy()
        end[axis] = start[axis] = at
        parts = self.cut(*self.trimmed(low, end)), self.cut(*self.trimmed(start, high))
        total = sum(one for one, _ in parts)
        if volume <= self.most and whole[0] <= total:
            return whole
        return total, [box for _, boxes in parts for box in boxes]

    def trimmed(self, low: Corner, high: Corner) -> tuple[Corner, Corner]:
        """The box around what is needed between two corners."""
        part = self.needed[_slices(low, high)]
        ends = [np.nonzero(part.any(axis=tuple({0, 1, 2} - {axis})))[0][[0, -1]] for axis in range(3)]
        return low + [first for first, _ in ends], low + [last + 1 for _, last in ends]

    def widened(self, low: Corner, high: Corner) -> Corner:
        """The upper corner of a box, with the margin along those axes along which what is needed goes on."""
        wide = high.copy()
        for axis in range(3):
            start, end = low.copy(), high.copy()
            start[axis], end[axis] = high[axis], high[axis] + 1
            if self.needed[_slices(start, end)].any():
                wide[axis] = min(high[axis] + self.shared[axis], self.needed.shape[axis])
        return wide

    def _cuts(self, low: Corner, high: Corner, axis: int) -> Iterator[tuple[float, int, int]]:
        """What the two parts of a box cost that is cut across ``axis``, the axis, and where."""
        part = self.needed[_slices(low, high)]
        length = part.shape[axis]
        areas = [np.ones(length), np.ones(length)]
        for other in {0, 1, 2} - {axis}:
            seen = np.logical_or.reduce(np.moveaxis(part, (axis, other), (0, 1)), axis=2)
            none = ~seen.any(axis=1)
            first = np.where(none, seen.shape[1], seen.argmax(axis=1))
            last = np.where(none, 0, seen.shape[1] - seen[:, ::-1].argmax(axis=1))
            areas[0] *= np.maximum.accumulate(last) - np.minimum.accumulate(first)
            areas[1] *= (np.maximum.accumulate(last[::-1]) - np.minimum.accumulate(first[::-1]))[::-1]
        there = np.logical_or.reduce(np.moveaxis(part, axis, 0).reshape(length, -1), axis=1)
        # The first part ends, and the second begins, with what is needed next to the cut.
        until = np.maximum.accumulate(np.where(there, np.arange(1, length + 1), 0))
        since = np.minimum.accumulate(np.where(there, np.arange(length), length)[::-1])[::-1]
        for at in range(self.least[axis], length - self.least[axis] + 1):
            shared = self.shared[axis] if there[at - 1] and there[at] else 0
            sizes = (until[at - 1] + shared) * areas[0][at - 1], (length - since[at]) * areas[1][at]
            yield sum(self._cost(size * self.voxels) for size in sizes), axis, int(low[axis]) + at

    def _cost(self, voxels: float) -> float:
        """Of a box of so many voxels, in as many tiles as it needs at least."""
        return float(voxels + -(-voxels // self.most) * TILE_COST)


def _slices(low: Corner, high: Corner) -> tuple[slice, ...]:
    return tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
