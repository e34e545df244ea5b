"""The numbers by which MONAI's RetinaNetDetector turns maps into boxes, without MONAI.

Importing MONAI takes longer than detecting; a program needs these alone. A test compares them with the detector's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from apps.medical.models.retinanet import ANCHOR_SCALES, CANDIDATES, DETECTIONS, RETURNED_LAYERS, STRIDE

if TYPE_CHECKING:
    from apps.medical.models.retinanet import RetinaNet3D

_LARGEST_GROWTH = math.log(1000.0 / 16)
"""The logarithm of the factor by which a box may be larger than its anchor, at most: MONAI's, from torchvision."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxDecoder:
    """``anchors`` of each level (A, 6), about the middle of a cell, in voxels; ``size_divisible`` the image's strides.

    Of the ``candidates`` best of a level above ``score_threshold`` those become boxes that overlap a better one by at
    most ``overlap``, ``detections`` at most.
    """

    anchors: tuple[Tensor, ...]
    size_divisible: Sequence[int]
    score_threshold: float
    overlap: float
    candidates: int
    detections: int

    @classmethod
    def of_settings(cls, settings: RetinaNet3D) -> BoxDecoder:
        """That of the detector which ``settings`` builds."""
        # In NumPy: a network is loaded without computing with torch, whose code takes memory once it is used.
        halves = [np.array(settings.anchors_voxels, np.float32) * np.float32(scale / 2) for scale in ANCHOR_SCALES]
        return cls(
            anchors=tuple(torch.from_numpy(np.concatenate([-half, half], axis=1).round()) for half in halves),
            size_divisible=[2 * stride * 2 ** max(RETURNED_LAYERS) for stride in STRIDE],
            score_threshold=settings.score_threshold,
            overlap=settings.nms_threshold,
            candidates=CANDIDATES,
            detections=DETECTIONS,
        )

    @classmethod
    def of_detector(cls, detector: Any) -> BoxDecoder:
        """That of a RetinaNetDetector of MONAI, however it was configured."""
        selector = detector.box_selector
        return cls(
            anchors=tuple(detector.anchor_generator.cell_anchors),
            size_divisible=list(detector.size_divisible),
            score_threshold=selector.score_thresh,
            overlap=selector.nms_thresh,
            candidates=selector.topk_candidates_per_level,
            detections=selector.detections_per_img,
        )


def decode(codes_N6: Tensor, anchors_N6: Tensor) -> Tensor:
    """(N, 6) boxes, low corner and high corner, from their codes: MONAI's ``BoxCoder`` with weights of 1.

    A code is the centre's distance from the anchor's in parts of its size, and the logarithm of the factor of size.
    """
    size = anchors_N6[:, 3:] - anchors_N6[:, :3]
    centre = codes_N6[:, :3] * size + (anchors_N6[:, :3] + anchors_N6[:, 3:]) / 2
    half = torch.exp(codes_N6[:, 3:].clamp(max=_LARGEST_GROWTH)) * size / 2
    return torch.cat([centre - half, centre + half], dim=1)
