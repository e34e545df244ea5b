"""The tiles in which a network sees an image that is too large for it at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from apps.medical.inference.cutting import cut
from apps.medical.inference.grid import triple

Voxels: TypeAlias = "tuple[int, int, int]"
"""Numbers of voxels along x, y, z."""
Mask: TypeAlias = "NDArray[np.bool_]"


class Tile(NamedTuple):
    """Voxels of an image: where they begin, and how many there are along x, y, z."""

    start: Voxels
    size: Voxels


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiling:
    """Tiles of ``size`` voxels along x, y, z; neighbours share ``margin`` voxels. ``batch`` or more go through at once.

    Size and margin must be whole multiples of the network's strides, so that neighbours' maps align. ``trimmed`` tiles
    are of any size, each around what is needed of an image; one of them holds as many voxels as go through at once.
    """

    size: Voxels = (160, 160, 96)
    margin: Voxels = (16, 16, 8)
    batch: int = 2
    trimmed: bool = False

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

    def covering(self, needed: Mask, divisible: Sequence[int]) -> list[Tile]:
        """The tiles, as few as fit, that hold a ``needed`` block; blocks are of ``divisible`` voxels.

        Trimmed tiles are up to 40 % fewer voxels than tiles of one size. A network whose heads normalise over a whole
        tile, as those of MONAI's RetinaNet do, takes them only where it has learnt from patches of a tile's size: one
        that has learnt from smaller patches finds fewer nodules in them, one that has finds more.
        """
        if self.trimmed:
            most = int(np.prod(self.size)) * self.batch // int(np.prod(divisible))
            least = [max(1, side * 3 // (5 * unit)) for side, unit in zip(self.size, divisible, strict=True)]
            shared = [-(-margin // unit) for margin, unit in zip(self.margin, divisible, strict=True)]
            boxes = cut(needed, most, least, shared)
            return [
                Tile(triple((low * divisible).tolist()), triple(((high - low) * divisible).tolist()))
                for low, high in boxes
            ]
        image = [count * unit for count, unit in zip(needed.shape, divisible, strict=True)]
        found = []
        for tile in self.fitted(image, divisible).tiles(image, divisible):
            spans = zip(tile.start, tile.size, divisible, strict=True)
            if needed[tuple(slice(a // unit, -(-(a + n) // unit)) for a, n, unit in spans)].any():
                found.append(tile)
        return found
