"""At which score a finding is suspicious enough to be set apart from the rest."""

from __future__ import annotations

from typing import Any

import numpy as np

from apps.medical.datasets.synthetic import phantoms
from apps.medical.inference.evaluation import score_scans
from apps.medical.metrics.froc import Froc, bootstrap, froc, score_at, sensitivity_at
from apps.medical.predictor import NodulePredictor

SEED = 1207
"""Neither the training's, nor its validation's, nor that of the headline table."""

FALSE_POSITIVES_PER_SCAN = 1.0
"""What a reader is asked to bear: the middle of the seven rates of LUNA16."""

DEFAULT_PATCHES = 64
PATCHES_A_SCAN = 4
"""A recipe with so many times more validation patches is calibrated on one phantom more."""


def calibrate(recipe: Any, model: Any) -> dict[str, Any]:
    """The score at one false positive a scan, on whole phantoms that nothing else is trained or scored on.

    The phantoms are synthetic, and so is the operating point: on real scans it gives more false positives.
    """
    scans = max(1, getattr(recipe.data, "validation_patches", DEFAULT_PATCHES) // PATCHES_A_SCAN)
    device = str(next(model.parameters()).device)
    predictor = NodulePredictor(detector=model, input=recipe.input, device=device, operating_score=1.0)
    found = score_scans(predictor, phantoms(SEED, scans))
    curve = froc(found.marks, found.truths, scans=scans)
    figures = (_score, _sensitivity)
    random = np.random.default_rng(SEED)
    score, sensitivity = bootstrap(found.marks, found.truths, scans=scans, figures=figures, random=random)
    return {
        "operating_score": round(_score(curve), 4),
        "operating_score_interval": [round(score.low, 4), round(score.high, 4)],
        "false_positives_per_scan": FALSE_POSITIVES_PER_SCAN,
        "sensitivity_on_synthetic_phantoms": round(_sensitivity(curve), 4),
        "sensitivity_interval": [round(sensitivity.low, 4), round(sensitivity.high, 4)],
        "interval": "95 %, over bootstrap samples of the phantoms",
        "phantoms": scans,
        "nodules": len(found.truths),
        "synthetic": True,
    }


def _score(curve: Froc) -> float:
    return score_at(curve, FALSE_POSITIVES_PER_SCAN)


def _sensitivity(curve: Froc) -> float:
    return sensitivity_at(curve, FALSE_POSITIVES_PER_SCAN)
