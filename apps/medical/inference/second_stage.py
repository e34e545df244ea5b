"""The second stage on a scan: candidates cut out at two scales, scored anew together with the detector's score."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from apps.medical.inference.candidates import Candidates
from apps.medical.inference.grid import averaged
from apps.medical.models.classifier import SCALES
from shared.device import sent

BATCH = 16
MOST = 80
"""Candidates beyond so many are none."""

CERTAIN = 1e-6
"""The detector's scores are taken as so far from 0 and 1 at least."""


def cut_patches(candidates: Candidates, size: tuple[int, int, int]) -> Tensor:
    """``size`` voxels around each candidate at each of ``SCALES``, (n, 2, X, Y, Z) in 0..1; 0 beyond the image."""
    image = candidates.image.float()
    middles = (candidates.boxes[:, :3] + candidates.boxes[:, 3:]) / 2
    patches = image.new_zeros((len(middles), len(SCALES), *size))
    for channel, scale in enumerate(SCALES):
        pooled = image if scale == 1 else averaged(image, scale)
        for n, middle in enumerate(middles / scale):
            start = np.rint(middle - np.array(size) / 2).astype(int)
            low, high = np.maximum(start, 0), np.minimum(start + size, pooled.shape)
            if np.all(high > low):
                to = tuple(slice(a, b) for a, b in zip(low - start, high - start, strict=True))
                patches[n, channel][to] = pooled[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    return patches


def known(candidates: Candidates) -> NDArray[np.float32]:
    """What is known of each: the logit of the detector's score, and the logarithm of its size across in mm, (n, 2)."""
    scores = np.clip(candidates.scores, CERTAIN, 1 - CERTAIN)
    sides_mm = (candidates.boxes[:, 3:5] - candidates.boxes[:, :2]) * candidates.grid.spacing_mm[:2]
    size = np.log(np.maximum(sides_mm.mean(axis=1), 1.0))
    return np.stack([np.log(scores / (1 - scores)), size], axis=1).astype(np.float32)


@torch.inference_mode()
def rescored(candidates: Candidates, network: nn.Module, size: tuple[int, int, int]) -> Candidates:
    """The best ``MOST`` candidates by the score of both stages together, best first."""
    chosen = candidates.chosen(np.arange(min(len(candidates.scores), MOST)))
    if not len(chosen.scores):
        return chosen
    facts = sent(torch.from_numpy(known(chosen)), chosen.image.device)
    patches = cut_patches(chosen, size)
    logits = [network(patches[n : n + BATCH], facts[n : n + BATCH]) for n in range(0, len(patches), BATCH)]
    scores = torch.sigmoid(torch.cat(logits)).double().cpu().numpy()
    order = np.argsort(-scores, kind="stable")
    return replace(chosen.chosen(order), scores=scores[order])
