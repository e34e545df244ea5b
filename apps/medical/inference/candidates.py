"""From a scan to candidates: the detector's boxes at the lungs, from one look at the scan or two, one for each nodule.

The second look is at the image averaged over pairs of voxels, with the same network: what is too large for the anchors
in the first look has half the size there. It costs an eighth of the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from apps.medical.inference.grid import Grid, averaged, cover, resample
from apps.medical.inference.lungs import Lungs
from apps.medical.inference.pipeline import Detections, detect, suppress
from apps.medical.inference.tiles import Tiling
from apps.medical.models.boxes import BoxDecoder
from apps.medical.types import ChestInput, CTVolume, Float64

if TYPE_CHECKING:
    from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector

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
    found = _look(detector, volume, lungs, image, grid, tiling, network, dtype)
    if input.second_look > 1:
        found = _joined(
            detector, found, _second_look(detector, volume, lungs, image, grid, input, tiling, network, dtype)
        )
    candidates = Candidates(
        image,
        grid,
        found.boxes.double().cpu().numpy(),
        found.scores.double().cpu().numpy(),
        found.labels.cpu().numpy(),
    )
    low, high = candidates.ends_lps_mm()
    allowed = _at_lung(volume, lungs, low, high) & _within(volume, (low + high) / 2) & ~_at_side(volume, low, high)
    return candidates.chosen(suppress_nested(low, high, np.nonzero(allowed)[0]))


def _look(
    detector: RetinaNetDetector | BoxDecoder,
    volume: CTVolume,
    lungs: Lungs,
    image: Tensor,
    grid: Grid,
    tiling: Tiling,
    network: nn.Module | None,
    dtype: torch.dtype | None,
) -> Detections:
    near = _blocks_near_lung(volume, lungs, grid, detector.size_divisible)
    tiles = tiling.covering(near, detector.size_divisible)
    return detect(detector, image, tiles, batch=tiling.batch, network=network, dtype=dtype)


def _second_look(
    detector: RetinaNetDetector | BoxDecoder,
    volume: CTVolume,
    lungs: Lungs,
    image: Tensor,
    grid: Grid,
    input: ChestInput,
    tiling: Tiling,
    network: nn.Module | None,
    dtype: torch.dtype | None,
) -> Detections:
    """What is large in the image at several times the spacing, in voxels of the image itself."""
    times = input.second_look
    coarse_image = averaged(image, times)
    spacing = grid.spacing_mm * times
    # The middle of the first coarse voxel is that of those that it is the mean of.
    middle = grid.centres_lps_mm(np.full(3, (times - 1) / 2))
    size = coarse_image.shape
    coarse = Grid(middle, spacing, (size[0], size[1], size[2]))
    found = _look(detector, volume, lungs, coarse_image, coarse, tiling, network, dtype)
    across_mm = ((found.boxes[:, 3:5] - found.boxes[:, :2]) * torch.as_tensor(spacing[:2]).to(found.boxes)).mean(dim=1)
    large = across_mm > LARGE_MM
    return Detections(found.boxes[large] * times, found.scores[large], found.labels[large])


def _joined(detector: RetinaNetDetector | BoxDecoder, first: Detections, second: Detections) -> Detections:
    """The detections of both looks, without those that overlap better ones of the same class."""
    boxes, scores = torch.cat([first.boxes, second.boxes]), torch.cat([first.scores, second.scores])
    labels = torch.cat([first.labels, second.labels])
    apart = boxes + labels[:, None] * (boxes.max() + 1 if len(boxes) else 0)
    decoder = detector if isinstance(detector, BoxDecoder) else BoxDecoder.of_detector(detector)
    kept = suppress(apart, scores, decoder.overlap, decoder.detections)
    return Detections(boxes[kept], scores[kept], labels[kept])


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
