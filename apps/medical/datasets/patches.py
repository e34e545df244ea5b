"""Augments training patches (flips, transposition, brightness) and collates them into batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from apps.medical.types import ChestInput

if TYPE_CHECKING:
    from shared.data.dataset import Batch

Patch = tuple[NDArray[np.float32], NDArray[np.float32]]
"""An image (X, Y, Z) in 0..1 and its boxes (N, 6) in voxels, lower corner then upper."""


def augment(image: NDArray[np.uint8], boxes: NDArray[np.float32], random: np.random.Generator | None) -> Patch:
    """Scales an image from 0..255 to 0..1. With ``random``, also flips and transposes it and changes its brightness."""
    gain, shift = 1.0, 0.0
    if random is not None:
        for axis in range(3):
            if random.random() < 0.5:
                image = np.flip(image, axis)
                boxes = mirror(boxes, axis, image.shape[axis])
        if image.shape[0] == image.shape[1] and random.random() < 0.5:
            image = image.transpose(1, 0, 2)
            boxes = boxes[:, [1, 0, 2, 4, 3, 5]]
        gain, shift = random.uniform(0.9, 1.1), random.uniform(-0.03, 0.03)
    return np.clip(image.astype(np.float32) * np.float32(gain / 255) + np.float32(shift), 0, 1), boxes


def mirror(boxes: NDArray[np.float32], axis: int, size: int) -> NDArray[np.float32]:
    """The boxes (N, 6) after flipping an image along ``axis``, which has ``size`` voxels."""
    flipped = boxes.copy()
    flipped[:, axis], flipped[:, axis + 3] = size - boxes[:, axis + 3], size - boxes[:, axis]
    return flipped


def clip_boxes(boxes: NDArray[np.float32], size: tuple[int, int, int]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Clips boxes (N, 6) to a patch and drops those that lose half of their volume or more.

    Returns the clipped boxes and the mask (N,) of the kept ones.
    """
    clipped = boxes.copy()
    clipped[:, :3] = np.clip(boxes[:, :3], 0, size)
    clipped[:, 3:] = np.clip(boxes[:, 3:], 0, size)
    volume = np.prod(boxes[:, 3:] - boxes[:, :3], axis=1)
    clipped_volume = np.prod(np.maximum(clipped[:, 3:] - clipped[:, :3], 0), axis=1)
    kept = np.asarray(clipped_volume > 0.5 * volume)
    return np.asarray(clipped[kept], np.float32), kept


def scale_to_window(hu: NDArray[np.floating], window_hu: tuple[float, float]) -> NDArray[np.uint8]:
    """Scales HU from the window to 0..255, the format of packed patches and scans."""
    low, high = window_hu
    scaled: NDArray[np.uint8] = np.rint(np.clip((hu - low) * (255 / (high - low)), 0, 255)).astype(np.uint8)
    return scaled


def collate(patches: Sequence[Patch], input: ChestInput, labels: Sequence[NDArray[np.int64]] | None = None) -> Batch:
    """A batch: ``image`` float32 (B, 1, X, Y, Z) in 0..1, ``boxes``, a list of (N, 6), ``labels``, and ``spacing_mm``.

    ``labels`` is a list of class indices (N,), by default all 0.
    """
    import torch

    images, boxes = zip(*patches, strict=True)
    return {
        "image": torch.from_numpy(np.stack(images))[:, None],
        "boxes": [torch.from_numpy(np.ascontiguousarray(patch_boxes)) for patch_boxes in boxes],
        "labels": [
            torch.from_numpy(np.zeros(len(patch_boxes), np.int64) if labels is None else labels[n])
            for n, patch_boxes in enumerate(boxes)
        ],
        "spacing_mm": input.spacing_mm,
    }
