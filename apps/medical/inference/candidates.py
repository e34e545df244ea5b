"""From a scan to candidates: the detector's boxes at the lungs, from one look at the scan or two, one for each nodule.

The second look is at the image averaged over pairs of voxels, with the same network: what is too large for the anchors
in the first look has half the size there. It costs an eighth of the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from apps.medical.inference.grid import Grid, averaged, cover, resample
from apps.medical.inference.marks import Marks, fetched, joined, suppressed
from apps.medical.inference.pipeline import search
from apps.medical.inference.tiles import Tiling
from apps.medical.models.boxes import BoxDecoder
from apps.medical.types import ChestInput, CTVolume, Float64

if TYPE_CHECKING:
    from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector

    from apps.medical.inference.lungs import Lungs

LARGE_MM = 12.0
"""Of the second look only what is larger than this across is taken: the first sees the rest better."""

EDGE_MM = 3.0
"""A candidate whose centre lies nearer to the end of the image is none: what it would be is not in the image."""

SIDE_MM = 1.5
"""Nor is one whose box comes so near to a side of the image. Where a small field of view cuts the lungs off there, the
result says that they are not searched whole."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """What the detector marks in a scan, best first.

    image   (X, Y, Z) in 0..1, the lungs on ``grid``
    boxes   (n, 6) in voxels of the image, lower corner then upper
    scores  (n,) the detector's, 0 to 1;  labels  (n,) numbers of classes
    """

    image: Tensor
    grid: Grid
    boxes: Float64
    scores: Float64
    labels: NDArray[np.int64]

    def ends_lps_mm(self) -> tuple[Float64, Float64]:
        """The corners (n, 3) of the boxes, lower and upper, in LPS mm."""
        ends = [self.grid.to_lps_mm(self.boxes[:, :3]), self.grid.to_lps_mm(self.boxes[:, 3:])]
        return np.minimum(*ends), np.maximum(*ends)

    def chosen(self, index: Sequence[int] | NDArray[np.integer]) -> Candidates:
        at = np.asarray(index, np.int64)
        return Candidates(self.image, self.grid, self.boxes[at], self.scores[at], self.labels[at])


def find_candidates(
    detector: RetinaNetDetector | BoxDecoder,
    volume: CTVolume,
    lungs: Lungs,
    *,
    input: ChestInput,
    tiling: Tiling,
    network: nn.Module | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Candidates:
    """The detector's marks at the lungs of ``volume``; its axes are those of ``grid.reorient_to_lps``."""
    strides = [n * input.second_look for n in detector.size_divisible]
    grid = cover(volume, lungs.low_ijk, lungs.high_ijk, input.spacing_mm, strides)
    image = resample(volume, grid, input.window_hu, device)

    def look(seen: Tensor, on: Grid, on_host: bool) -> Marks:
        near = _blocks_near_lung(volume, lungs, on, detector.size_divisible)
        tiles = tiling.covering(near, detector.size_divisible)
        # One trimmed tile holds as much as a batch of others.
        batch = 1 if tiling.trimmed else tiling.batch
        return search(detector, seen, tiles, on_host=on_host, batch=batch, network=network, dtype=dtype)

    def marks(on_host: bool) -> Marks:
        first = look(image, grid, on_host)
        if input.second_look == 1:
            return first
        coarse_image = averaged(image, input.second_look)
        coarse = _coarser(grid, input.second_look, coarse_image)
        second = _large(look(coarse_image, coarse, on_host), coarse, input.second_look)
        decoder = detector if isinstance(detector, BoxDecoder) else BoxDecoder.of_detector(detector)
        return suppressed(decoder, joined([first, second]), on_host=on_host)

    found = fetched(marks, image.device)
    candidates = Candidates(
        image, grid, found.boxes.double().numpy(), found.scores.double().numpy(), found.labels.numpy()
    )
    low, high = candidates.ends_lps_mm()
    allowed = _at_lung(volume, lungs, low, high) & _within(volume, (low + high) / 2) & ~_at_side(volume, low, high)
    return candidates.chosen(suppress_nested(low, high, np.nonzero(allowed)[0]))


def _coarser(grid: Grid, times: int, image: Tensor) -> Grid:
    """The grid of an image that is averaged over so many voxels of ``grid`` along each axis."""
    # The middle of the first coarse voxel is that of those that it is the mean of.
    middle = grid.centres_lps_mm(np.full(3, (times - 1) / 2))
    size = image.shape
    return Grid(middle, grid.spacing_mm * times, (size[0], size[1], size[2]))


def _large(found: Marks, grid: Grid, times: int) -> Marks:
    """What is large of the marks on ``grid``, in voxels so many times as small."""
    across_mm = [(found.boxes[:, 3 + axis] - found.boxes[:, axis]) * float(grid.spacing_mm[axis]) for axis in (0, 1)]
    large = (across_mm[0] + across_mm[1]) / 2 > LARGE_MM
    return replace(found, boxes=found.boxes * times, valid=found.valid & large)


def _at_lung(volume: CTVolume, lungs: Lungs, low: Float64, high: Float64) -> NDArray[np.bool_]:
    """Which boxes lie at a lung: their centre does, or three of the middles of their six faces.

    The centre of a mass is far from any lung that is aerated.
    """
    centre, half = (low + high) / 2, (high - low) / 2
    faces = np.zeros(len(centre), int)
    for axis in range(3):
        for sign in (-1, 1):
            moved = centre.copy()
            moved[:, axis] += sign * half[:, axis]
            faces += lungs.contain(volume.to_index_ijk(moved)) & _within(volume, moved, 0.0)
    return np.asarray(lungs.contain(volume.to_index_ijk(centre)) | (faces >= 3))


def _within(volume: CTVolume, points_lps_mm: Float64, margin_mm: float = EDGE_MM) -> NDArray[np.bool_]:
    """Which points lie so far from the ends of the volume, or as far as its middle."""
    last, spacing = np.array(volume.size_ijk) - 1, np.array(volume.spacing_mm)
    index = volume.to_index_ijk(points_lps_mm)
    inside = (np.minimum(index, last - index) + 0.5) * spacing
    return np.asarray(np.all(inside >= np.minimum(margin_mm, 0.25 * (last + 1) * spacing), axis=1))


def _at_side(volume: CTVolume, low: Float64, high: Float64) -> NDArray[np.bool_]:
    """Which boxes reach the image's left, right, front or back. What is cut off above or below may be a nodule yet."""
    index = np.stack([volume.to_index_ijk(low), volume.to_index_ijk(high)])[..., :2]
    last, spacing = np.array(volume.size_ijk[:2]) - 1, np.array(volume.spacing_mm[:2])
    inside = (np.minimum(index, last - index) + 0.5) * spacing
    return np.asarray((inside < SIDE_MM).any(axis=(0, 2)))


def suppress_nested(low: Float64, high: Float64, best_first: NDArray[np.intp]) -> list[int]:
    """Leaves out a mark whose centre lies in a better mark's box, or whose box holds the better mark's centre.

    Suppression by overlap keeps a small box within a large one; a reader wants one mark for each nodule.
    """
    centre = (low + high) / 2
    kept: list[int] = []
    for n in best_first:
        others = np.array(kept, int)
        within = np.all((centre[n] > low[others]) & (centre[n] < high[others]), axis=1)
        around = np.all((centre[others] > low[n]) & (centre[others] < high[n]), axis=1)
        if not (within | around).any():
            kept.append(int(n))
    return kept


def _blocks_near_lung(volume: CTVolume, lungs: Lungs, grid: Grid, divisible: Sequence[int]) -> NDArray[np.bool_]:
    """Which blocks of ``divisible`` voxels of the grid hold what is near a lung, tried at the middles of their eighths.

    What is near a lung reaches far enough beyond it that between these points nothing is lost.
    """
    blocks = [-(-n // d) for n, d in zip(grid.size, divisible, strict=True)]
    axes = [(np.arange(2 * n) + 0.5) * d / 2 - 0.5 for n, d in zip(blocks, divisible, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    index = volume.to_index_ijk(grid.centres_lps_mm(points))
    inside = np.all((index > -1) & (index < volume.size_ijk), axis=1)
    near = inside & lungs.contain(index)
    return np.asarray(near.reshape(blocks[0], 2, blocks[1], 2, blocks[2], 2).any(axis=(1, 3, 5)))
