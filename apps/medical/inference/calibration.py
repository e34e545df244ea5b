"""At which score the detector is sure enough of a finding to set it apart from weaker marks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from apps.medical.datasets.hard_candidates import HardCandidates
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
"""Neither the training's, nor its validation's, nor that of the headline table."""

UNCALIBRATED_SCORE = 0.5
FALSE_POSITIVES_PER_SCAN = 1.0
"""What a reader is asked to bear: the middle of the seven rates of LUNA16."""

PATCHES_PER_SCAN = 4
"""A recipe with so many times more validation patches is calibrated on one phantom more."""


def calibrate(recipe: Any, model: Any) -> dict[str, Any]:
    """The score at one false positive a scan, on the validation scans of the recipe's data set.

    For synthetic data these are phantoms that nothing else is trained or scored on. The operating point is then
    synthetic too: on real scans it gives more false positives. The scans of another data set have chosen the checkpoint
    in training, and what is stated of them here is a little too good.
    """
    if isinstance(recipe.data, HardCandidates):
        return calibrate_second(recipe, model, recipe.data.artifact())
    if isinstance(recipe.model, CandidateClassifier):
        raise InvalidInputError(
            f"{SECOND_STAGE} ranks the marks of a detector: name the detector with --artifact, and the operating score "
            "of both is set, in the second stage's next version"
        )
    device = str(next(model.parameters()).device)
    return _on(recipe.data, NodulePredictor(detector=model, input=recipe.input, device=device, operating_score=1.0))


def calibrate_second(recipe: Any, model: Any, detector: Artifact) -> dict[str, Any]:
    """The same of a second stage together with the detector whose marks it ranks."""
    both = NodulePredictor.load([detector], str(next(model.parameters()).device))
    both.operating_score, both.second_stage = 1.0, (model.eval(), recipe.model.size)
    return _on(recipe.data, both)


def _on(data: Any, predictor: NodulePredictor) -> dict[str, Any]:
    if isinstance(data, HardCandidates):
        return operating_point(predictor, phantoms(SEED, data.validation_scans), True)
    if isinstance(data, Synthetic):
        return operating_point(predictor, phantoms(SEED, max(1, data.validation_patches // PATCHES_PER_SCAN)), True)
    return operating_point(predictor, data.validation_scans(), bool(data.fingerprint()["synthetic"]))


def operating_point(predictor: NodulePredictor, scans: Iterable[AnnotatedScan], synthetic: bool) -> dict[str, Any]:
    """The score at one false positive a scan, the sensitivity there, and the 95 % interval of both over the scans.

    Without a nodule in the scans it is a half, and the result says why, so that a model can be exported all the same.
    """
    found = score_scans(predictor, scans)
    nodules = sum(not truth.excluded for truth in found.truths)
    if not nodules:
        why = f"none of the {found.scans} validation scans has a nodule"
        return {"operating_score": UNCALIBRATED_SCORE, "calibrated": False, "reason": why, "synthetic": synthetic}
    curve = froc(found.marks, found.truths, scans=found.scans)
    figures = (_score, _sensitivity)
    random = np.random.default_rng(SEED)
    score, sensitivity = bootstrap(found.marks, found.truths, scans=found.scans, figures=figures, random=random)
    return {
        "operating_score": round(_score(curve), 4),
        "operating_score_interval": [round(score.low, 4), round(score.high, 4)],
        "false_positives_per_scan": FALSE_POSITIVES_PER_SCAN,
        "sensitivity": round(_sensitivity(curve), 4),
        "sensitivity_interval": [round(sensitivity.low, 4), round(sensitivity.high, 4)],
        "interval": "95 %, over bootstrap samples of the scans",
        "scans": found.scans,
        "nodules": nodules,
        "synthetic": synthetic,
    }


def _score(curve: Froc) -> float:
    return score_at(curve, FALSE_POSITIVES_PER_SCAN)


def _sensitivity(curve: Froc) -> float:
    return sensitivity_at(curve, FALSE_POSITIVES_PER_SCAN)
