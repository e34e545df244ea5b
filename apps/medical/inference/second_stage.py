"""Applies the second stage to a scan: crops candidates at two scales and rescores them jointly with the detector."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from apps.medical.inference.candidates import Candidates
from apps.medical.inference.grid import averaged
from apps.medical.models.classifier import SCALES
from shared.device import to_device

BATCH = 16
MAX_CANDIDATES = 80
"""Candidates beyond this number are dropped."""

SCORE_EPSILON = 1e-6
"""The detector's scores are clipped to this distance from 0 and 1."""


def cut_patches(candidates: Candidates, size: tuple[int, int, int]) -> Tensor:
    """Patches of ``size`` voxels around each candidate at each of ``SCALES``: (N, 2, X, Y, Z) in 0..1, 0-padded."""
    image = candidates.image.float()
    centres = (candidates.boxes[:, :3] + candidates.boxes[:, 3:]) / 2
    patches = image.new_zeros((len(centres), len(SCALES), *size))
    for channel, scale in enumerate(SCALES):
        pooled = image if scale == 1 else averaged(image, scale)
        for n, centre in enumerate(centres / scale):
            start = np.rint(centre - np.array(size) / 2).astype(int)
            low, high = np.maximum(start, 0), np.minimum(start + size, pooled.shape)
            if np.all(high > low):
                target = tuple(slice(a, b) for a, b in zip(low - start, high - start, strict=True))
                patches[n, channel][target] = pooled[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    return patches


def scalar_inputs(candidates: Candidates) -> NDArray[np.float32]:
    """The logit of each detector score and the logarithm of the mean in-plane box size in mm, (N, 2)."""
    scores = np.clip(candidates.scores, SCORE_EPSILON, 1 - SCORE_EPSILON)
    sides_mm = (candidates.boxes[:, 3:5] - candidates.boxes[:, :2]) * candidates.grid.spacing_mm[:2]
    log_size = np.log(np.maximum(sides_mm.mean(axis=1), 1.0))
    return np.stack([np.log(scores / (1 - scores)), log_size], axis=1).astype(np.float32)


@torch.inference_mode()
def rescored(candidates: Candidates, network: nn.Module, size: tuple[int, int, int]) -> Candidates:
    """The first ``MAX_CANDIDATES`` candidates, rescored jointly by both stages and sorted by decreasing score."""
    chosen = candidates.chosen(np.arange(min(len(candidates.scores), MAX_CANDIDATES)))
    if not len(chosen.scores):
        return chosen
    scalars = to_device(torch.from_numpy(scalar_inputs(chosen)), chosen.image.device)
    patches = cut_patches(chosen, size)
    logits = [network(patches[n : n + BATCH], scalars[n : n + BATCH]) for n in range(0, len(patches), BATCH)]
    scores = torch.sigmoid(torch.cat(logits)).double().cpu().numpy()
    order = np.argsort(-scores, kind="stable")
    return replace(chosen.chosen(order), scores=scores[order])
