"""Finds candidates in a scan: the detector's boxes near the lungs, from one or two passes, at most one per nodule.

The second pass runs the same network on the image averaged over pairs of voxels, in which nodules that are too large
for the anchors have half the size. It takes an eighth of the time of the first pass.
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
from apps.medical.inference.marks import Marks, concatenate, fetch, suppress_marks
from apps.medical.inference.pipeline import search
from apps.medical.inference.tiles import Tiling
from apps.medical.models.boxes import BoxDecoder
from apps.medical.types import ChestInput, CTVolume, Float64, triple

if TYPE_CHECKING:
    from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector

    from apps.medical.inference.lungs import Lungs

LARGE_MM = 12.0
"""The second pass only contributes boxes with a larger mean in-plane side: the first is better at smaller ones."""

EDGE_MM = 3.0
"""Candidates whose centre is closer to the edge of the image are dropped, since up to half of them is outside it."""

SIDE_MM = 1.5
"""Candidates whose box comes this close to a side of the image are dropped too. If a small field of view cuts off the
lungs there, the result says that they were not searched completely."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The detector's candidates in a scan, by decreasing score.

    image   (X, Y, Z) in 0..1, the lungs on ``grid``
    boxes   (N, 6) in voxels of the image, lower corner then upper
    scores  (N,) of the detector, 0 to 1
    labels  (N,) class indices
    """

    image: Tensor
    grid: Grid
    boxes: Float64
    scores: Float64
    labels: NDArray[np.int64]

    def ends_lps_mm(self) -> tuple[Float64, Float64]:
        """The corners (N, 3) of the boxes, lower and upper, in LPS mm."""
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
        coarse = _averaged_grid(grid, input.second_look, coarse_image)
        second = _large_marks(look(coarse_image, coarse, on_host), coarse, input.second_look)
        decoder = detector if isinstance(detector, BoxDecoder) else BoxDecoder.of_detector(detector)
        return suppress_marks(decoder, concatenate([first, second]), on_host=on_host)

    detections = fetch(marks, image.device)
    candidates = Candidates(
        image, grid, detections.boxes.double().numpy(), detections.scores.double().numpy(), detections.labels.numpy()
    )
    low, high = candidates.ends_lps_mm()
    allowed = (
        _is_at_lung(volume, lungs, low, high) & _is_inside(volume, (low + high) / 2) & ~_touches_side(volume, low, high)
    )
    return candidates.chosen(suppress_nested(low, high, np.nonzero(allowed)[0]))


def _averaged_grid(grid: Grid, times: int, image: Tensor) -> Grid:
    """The grid of an image that is averaged over ``times`` voxels of ``grid`` along each axis."""
    # The centre of the first averaged voxel is the mean of the centres that it averages.
    origin = grid.centres_lps_mm(np.full(3, (times - 1) / 2))
    return Grid(origin, grid.spacing_mm * times, triple(image.shape))


def _large_marks(marks: Marks, grid: Grid, times: int) -> Marks:
    """The marks larger than ``LARGE_MM``, scaled from voxels of ``grid`` to voxels ``times`` times smaller."""
    sides_mm = [(marks.boxes[:, 3 + axis] - marks.boxes[:, axis]) * float(grid.spacing_mm[axis]) for axis in (0, 1)]
    is_large = (sides_mm[0] + sides_mm[1]) / 2 > LARGE_MM
    return replace(marks, boxes=marks.boxes * times, valid=marks.valid & is_large)


def _is_at_lung(volume: CTVolume, lungs: Lungs, low: Float64, high: Float64) -> NDArray[np.bool_]:
    """Whether each box is at a lung: its centre is, or the centres of at least three of its six faces are.

    The centre of a large mass is far from aerated lung.
    """
    centre, half = (low + high) / 2, (high - low) / 2
    faces = np.zeros(len(centre), int)
    for axis in range(3):
        for sign in (-1, 1):
            face_centre = centre.copy()
            face_centre[:, axis] += sign * half[:, axis]
            faces += lungs.contain(volume.to_index_ijk(face_centre)) & _is_inside(volume, face_centre, 0.0)
    return np.asarray(lungs.contain(volume.to_index_ijk(centre)) | (faces >= 3))


def _is_inside(volume: CTVolume, points_lps_mm: Float64, margin_mm: float = EDGE_MM) -> NDArray[np.bool_]:
    """Whether each point is at least ``margin_mm`` inside the volume, or a quarter of its length if that is less."""
    last, spacing = np.array(volume.size_ijk) - 1, np.array(volume.spacing_mm)
    index = volume.to_index_ijk(points_lps_mm)
    edge_distance_mm = (np.minimum(index, last - index) + 0.5) * spacing
    return np.asarray(np.all(edge_distance_mm >= np.minimum(margin_mm, 0.25 * (last + 1) * spacing), axis=1))


def _touches_side(volume: CTVolume, low: Float64, high: Float64) -> NDArray[np.bool_]:
    """Whether each box touches the left, right, front or back of the image. At the top or bottom it may be a nodule."""
    index = np.stack([volume.to_index_ijk(low), volume.to_index_ijk(high)])[..., :2]
    last, spacing = np.array(volume.size_ijk[:2]) - 1, np.array(volume.spacing_mm[:2])
    edge_distance_mm = (np.minimum(index, last - index) + 0.5) * spacing
    return np.asarray((edge_distance_mm < SIDE_MM).any(axis=(0, 2)))


def suppress_nested(low: Float64, high: Float64, best_first: NDArray[np.intp]) -> list[int]:
    """Drops each box whose centre is inside a better box, or that contains the centre of a better box.

    Suppression by IoU keeps a small box inside a large one, but a reader expects one mark per nodule. Returns the kept
    indices in the order of ``best_first``.
    """
    centre = (low + high) / 2
    kept: list[int] = []
    for n in best_first:
        others = np.array(kept, int)
        is_inside = np.all((centre[n] > low[others]) & (centre[n] < high[others]), axis=1)
        contains = np.all((centre[others] > low[n]) & (centre[others] < high[n]), axis=1)
        if not (is_inside | contains).any():
            kept.append(int(n))
    return kept


def _blocks_near_lung(volume: CTVolume, lungs: Lungs, grid: Grid, divisible: Sequence[int]) -> NDArray[np.bool_]:
    """Whether each block of ``divisible`` voxels of the grid is near a lung, tested at the centres of its octants.

    The lungs' margin is wide enough that no part of it falls between these points.
    """
    blocks = [-(-n // d) for n, d in zip(grid.size, divisible, strict=True)]
    axes = [(np.arange(2 * n) + 0.5) * d / 2 - 0.5 for n, d in zip(blocks, divisible, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    index = volume.to_index_ijk(grid.centres_lps_mm(points))
    inside = np.all((index > -1) & (index < volume.size_ijk), axis=1)
    near = inside & lungs.contain(index)
    return np.asarray(near.reshape(blocks[0], 2, blocks[1], 2, blocks[2], 2).any(axis=(1, 3, 5)))
