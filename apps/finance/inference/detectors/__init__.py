"""The detectors, by the names under which a manifest keeps what they have learnt: a file and a line for each.

Of detectors that say the same of a row, the first in the table is the simplest to look up and is named.
"""

from __future__ import annotations

from apps.finance.inference.detectors import (
    drift,
    high_volatility,
    jump,
    level,
    low_volatility,
    move,
    rhythm,
    surprise,
)
from apps.finance.inference.detectors.detector import Detector

DETECTORS: dict[str, Detector] = {
    "surprise": surprise.DETECTOR,
    "drift": drift.DETECTOR,
    "level": level.DETECTOR,
    "rhythm": rhythm.DETECTOR,
    "jump": jump.DETECTOR,
    "move": move.DETECTOR,
    "high_volatility": high_volatility.DETECTOR,
    "low_volatility": low_volatility.DETECTOR,
}
