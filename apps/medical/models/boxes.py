"""The box decoding of MONAI's RetinaNetDetector, without importing MONAI.

Importing MONAI takes longer than detection, and a program needs only these numbers. A test compares them with the
detector's own.
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

_MAX_LOG_SCALE = math.log(1000.0 / 16)
"""The logarithm of the largest ratio of a box to its anchor: MONAI's value, taken from torchvision."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxDecoder:
    """How a detector decodes and selects boxes.

    ``anchors`` has the anchors of each level, (A, 6) in voxels relative to the centre of a cell. Image sizes must be
    multiples of ``size_divisible``. The best ``candidates`` of each level that score above ``score_threshold`` are
    decoded; non-maximum suppression at the IoU ``overlap`` keeps at most ``detections`` of them.
    """

    anchors: tuple[Tensor, ...]
    size_divisible: Sequence[int]
    score_threshold: float
    overlap: float
    candidates: int
    detections: int

    @classmethod
    def of_settings(cls, settings: RetinaNet3D) -> BoxDecoder:
        """The decoder of the detector that ``settings`` builds."""
        # NumPy, because torch's kernels take memory from their first use, and loading a network needs none of them.
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
        """The decoder of a RetinaNetDetector of MONAI with any configuration."""
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
    """Boxes (N, 6), as low and high corners, from their codes: MONAI's ``BoxCoder`` with weights of 1.

    A code has the offset of the centre relative to the anchor's size, and the logarithm of the size ratio.
    """
    size = anchors_N6[:, 3:] - anchors_N6[:, :3]
    centre = codes_N6[:, :3] * size + (anchors_N6[:, :3] + anchors_N6[:, 3:]) / 2
    half = torch.exp(codes_N6[:, 3:].clamp(max=_MAX_LOG_SCALE)) * size / 2
    return torch.cat([centre - half, centre + half], dim=1)
