"""Sets the operating score, above which a finding is shown as a detection."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from apps.medical.datasets.hard_candidates import HardCandidates
from apps.medical.datasets.scan_candidates import ScanCandidates
from apps.medical.datasets.synthetic import Synthetic, phantoms
from apps.medical.inference.evaluation import score_scans
from apps.medical.metrics.froc import Froc, bootstrap, froc, score_at, sensitivity_at
from apps.medical.models.classifier import NAME as SECOND_STAGE
from apps.medical.models.classifier import CandidateClassifier
from apps.medical.predictor import NodulePredictor
from apps.medical.types import AnnotatedScan
from shared.deploy.artifact import Artifact
from shared.errors import InvalidInputError

SEED = 1207
"""Differs from the seeds of training, validation and the headline table."""

UNCALIBRATED_SCORE = 0.5
FALSE_POSITIVES_PER_SCAN = 1.0
"""The middle of LUNA16's seven operating points."""

PATCHES_PER_SCAN = 4
"""Number of validation patches in a recipe for each phantom that it is calibrated on."""


def calibrate(recipe: Any, model: Any) -> dict[str, Any]:
    """The score at one false positive per scan, on the validation scans of the recipe's data set.

    For synthetic data these are phantoms that are used for nothing else; on real scans this operating point gives more
    false positives. For other data sets they are the validation scans that selected the checkpoint during training, so
    the stated sensitivity is slightly optimistic.
    """
    if isinstance(recipe.data, HardCandidates | ScanCandidates):
        return calibrate_second(recipe, model, recipe.data.artifact())
    if isinstance(recipe.model, CandidateClassifier):
        raise InvalidInputError(
            f"{SECOND_STAGE} rescores the candidates of a detector: name the detector with --artifact; the joint "
            "operating score is stored in the second stage's next version"
        )
    device = str(next(model.parameters()).device)
    return _calibrate_on(
        recipe.data, NodulePredictor(detector=model, input=recipe.input, device=device, operating_score=1.0)
    )


def calibrate_second(recipe: Any, model: Any, detector: Artifact) -> dict[str, Any]:
    """``calibrate`` for a second stage together with its detector."""
    predictor = NodulePredictor.load([detector], str(next(model.parameters()).device))
    predictor.operating_score, predictor.second_stage = 1.0, (model.eval(), recipe.model.size)
    return _calibrate_on(recipe.data, predictor)


def _calibrate_on(data: Any, predictor: NodulePredictor) -> dict[str, Any]:
    if isinstance(data, HardCandidates):
        return operating_point(predictor, phantoms(SEED, data.validation_scans), True)
    if isinstance(data, Synthetic):
        return operating_point(predictor, phantoms(SEED, max(1, data.validation_patches // PATCHES_PER_SCAN)), True)
    return operating_point(predictor, data.validation_scans(), bool(data.fingerprint()["synthetic"]))


def operating_point(predictor: NodulePredictor, scans: Iterable[AnnotatedScan], synthetic: bool) -> dict[str, Any]:
    """The score at one false positive per scan, its sensitivity, and the 95 % interval of both over the scans.

    If the scans have no nodules, the score is 0.5 and the result states the reason, so that the model can be exported.
    """
    scores = score_scans(predictor, scans)
    nodules = sum(not truth.excluded for truth in scores.truths)
    if not nodules:
        reason = f"none of the {scores.scans} validation scans has a nodule"
        return {"operating_score": UNCALIBRATED_SCORE, "calibrated": False, "reason": reason, "synthetic": synthetic}
    curve = froc(scores.marks, scores.truths, scans=scores.scans)
    figures = (_score, _sensitivity)
    random = np.random.default_rng(SEED)
    score, sensitivity = bootstrap(scores.marks, scores.truths, scans=scores.scans, figures=figures, random=random)
    return {
        "operating_score": round(_score(curve), 4),
        "operating_score_interval": [round(score.low, 4), round(score.high, 4)],
        "false_positives_per_scan": FALSE_POSITIVES_PER_SCAN,
        "sensitivity": round(_sensitivity(curve), 4),
        "sensitivity_interval": [round(sensitivity.low, 4), round(sensitivity.high, 4)],
        "interval": "95 %, over bootstrap samples of the scans",
        "scans": scores.scans,
        "nodules": nodules,
        "synthetic": synthetic,
    }


def _score(curve: Froc) -> float:
    return score_at(curve, FALSE_POSITIVES_PER_SCAN)


def _sensitivity(curve: Froc) -> float:
    return sensitivity_at(curve, FALSE_POSITIVES_PER_SCAN)
