"""The detectors, by the names under which a manifest stores what they learnt: one file and one line each.

``DETECTORS`` are those whose weighted mean is the score (``scoring.WEIGHTS``). If several detect the same event, the
event is named after the first in the table, which is the easiest to verify. ``CANDIDATES`` did not improve the score.
``ANCHORS`` are the best published detector, which is too slow to run on every file, and the two that a later paper adds
to it. Candidates and anchors are kept for the ablation, which ``trivium reproduce finance`` prints.
"""

from __future__ import annotations

from apps.finance.inference.detectors import (
    amplitude,
    beyond_range,
    drift,
    high_volatility,
    joint,
    jump,
    level,
    low_volatility,
    move,
    nearest,
    paano,
    rhythm,
    spectral_residual,
    sub_pca,
    surprise,
)
from apps.finance.inference.detectors.detector import Detector

DETECTORS: dict[str, Detector] = {
    "beyond_range": beyond_range.DETECTOR,
    "jump": jump.DETECTOR,
    "move": move.DETECTOR,
    "high_volatility": high_volatility.DETECTOR,
    "low_volatility": low_volatility.DETECTOR,
    "level": level.DETECTOR,
    "rhythm": rhythm.DETECTOR,
    "nearest": nearest.DETECTOR,
}
CANDIDATES: dict[str, Detector] = {
    "surprise": surprise.DETECTOR,
    "drift": drift.DETECTOR,
    "sub_pca": sub_pca.DETECTOR,
    "spectral_residual": spectral_residual.DETECTOR,
}
ANCHORS: dict[str, Detector] = {
    "paano": paano.DETECTOR,
    "deviation": amplitude.DEVIATION,
    "mean_shift": amplitude.MEAN_SHIFT,
}
JOINT: dict[str, Detector] = {"joint": joint.DETECTOR}
"""Scores the columns of a series together, in place of all other detectors."""
