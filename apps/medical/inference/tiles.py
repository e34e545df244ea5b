"""Splits an image that is too large for the network into tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from apps.medical.inference.cutting import cut
from apps.medical.types import triple

Voxels: TypeAlias = "tuple[int, int, int]"
"""Numbers of voxels along x, y, z."""
Mask: TypeAlias = "NDArray[np.bool_]"


class Tile(NamedTuple):
    """A region of an image: its first voxel and its size along x, y, z."""

    start: Voxels
    size: Voxels


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiling:
    """How images are split into tiles.

    Tiles have ``size`` voxels along x, y, z and overlap by ``margin`` voxels; at least ``batch`` are computed at once.
    Size and margin must be multiples of the network's strides, so that the maps of neighbours align. ``trimmed`` tiles
    have any size and fit the needed parts of an image; each has at most as many voxels as a batch.
    """

    size: Voxels = (160, 160, 96)
    margin: Voxels = (16, 16, 8)
    batch: int = 2
    trimmed: bool = False

    def fitted(self, image: Sequence[int], divisible: Sequence[int]) -> Tiling:
        """A tiling with the same number of tiles for an image of this size, each as small as possible."""
        sizes = []
        for length, tile, overlap, stride in zip(image, self.size, self.margin, divisible, strict=True):
            count = max(1, -(-(length - overlap) // (tile - overlap)))
            sizes.append(-(-(length + (count - 1) * overlap) // (count * stride)) * stride)
        return replace(self, size=triple(sizes))

    def tiles(self, image: Sequence[int], divisible: Sequence[int]) -> list[Tile]:
        """The tiles of an image in MONAI's order. The last ones may extend beyond the end of the image."""
        axes = []
        for length, stride, tile, overlap in zip(image, divisible, self.size, self.margin, strict=True):
            last = max(-(-length // stride) * stride - tile, 0)
            interval = max(tile - overlap, 1)
            axes.append([min(n * interval, last) for n in range(-(-last // interval) + 1)])
        return [Tile((x, y, z), self.size) for x, y, z in product(*axes)]

    def covering(self, needed: Mask, divisible: Sequence[int]) -> list[Tile]:
        """The fewest tiles that cover every ``needed`` block; a block has ``divisible`` voxels.

        Trimmed tiles have up to 40 % fewer voxels in total than tiles of one size. The heads of MONAI's RetinaNet
        normalise over a whole tile, so trimmed tiles require training on patches of a tile's size: a network trained
        so finds more nodules in them, one trained on smaller patches fewer.
        """
        if self.trimmed:
            max_blocks = int(np.prod(self.size)) * self.batch // int(np.prod(divisible))
            min_sides = [max(1, side * 3 // (5 * stride)) for side, stride in zip(self.size, divisible, strict=True)]
            overlaps = [-(-margin // stride) for margin, stride in zip(self.margin, divisible, strict=True)]
            boxes = cut(needed, max_blocks, min_sides, overlaps)
            return [
                Tile(triple((low * divisible).tolist()), triple(((high - low) * divisible).tolist()))
                for low, high in boxes
            ]
        image = [count * stride for count, stride in zip(needed.shape, divisible, strict=True)]
        tiles = []
        for tile in self.fitted(image, divisible).tiles(image, divisible):
            spans = zip(tile.start, tile.size, divisible, strict=True)
            if needed[tuple(slice(a // stride, -(-(a + n) // stride)) for a, n, stride in spans)].any():
                tiles.append(tile)
        return tiles
