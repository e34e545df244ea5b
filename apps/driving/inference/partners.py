"""Matches second stages with detectors, by the detector's weights that they were trained with. Imports no torch."""

from __future__ import annotations

from apps.driving.models import SECOND_STAGE
from shared.deploy.artifact import Artifact
from shared.deploy.programs.store import weights_digest


def is_trained_for(second_stage: Artifact, detector: Artifact) -> bool:
    """Whether ``second_stage`` is a second stage that was trained on the boxes of ``detector``."""
    if second_stage.manifest.name != SECOND_STAGE:
        return False
    return bool(second_stage.recipe()["recipe"]["input"].get("weights") == weights_digest(detector))
