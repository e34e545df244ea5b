"""The detectors, by the names under which a manifest keeps what they have learnt: a file and a line for each.

``DETECTORS`` are those whose weighted mean is the score (``scoring.WEIGHTS``); of those that say the same of a row, the
first in the table is the simplest to look up and is named. ``CANDIDATES`` are those that did not help, and ``ANCHORS``
the best that is published, which is too slow to be asked for every file, with the two that are added to it: they stay
for the ablation, which ``trivium reproduce finance`` prints.
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
"""What scores the columns of a series together, in place of all others."""
