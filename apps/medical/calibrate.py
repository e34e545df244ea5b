"""At which score a finding is suspicious enough to be set apart from the rest."""

from __future__ import annotations

from typing import Any

import numpy as np

from apps.medical.metrics.froc import froc, sensitivity_at

LUNG_BOX_VOXELS = 18e6
"""Voxels in the lungs' box of an adult on the network's grid (about 270 x 180 x 240 mm)."""

MOST_PATCHES = 128


def calibrate(recipe: Any, model: Any) -> dict[str, Any]:
    """The score at one false positive in as much volume as a scan has, on the recipe's validation patches.

    The patches are synthetic, and so is the operating point: on real scans it gives more false positives.
    """
    task = recipe.task.build()
    data = recipe.data.validation()
    scores = task.scores()
    model.eval()
    count = min(len(data), MOST_PATCHES)
    for start in range(0, count, 4):
        task.evaluate(model, data.batch(np.arange(start, min(start + 4, count)), None), scores)
    curve = froc(scores.marks, scores.truths, scans=scores.patches)
    rate = float(np.prod(recipe.data.size)) / LUNG_BOX_VOXELS
    allowed = curve.false_positives_per_scan <= rate
    threshold = float(curve.thresholds[allowed][-1])
    return {
        "operating_score": round(min(threshold, 1.0), 4),
        "sensitivity_on_synthetic_patches": round(sensitivity_at(curve, rate), 4),
        "false_positives_per_patch": rate,
        "patches": count,
        "synthetic": True,
    }
