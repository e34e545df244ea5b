"""Matches second stages with the detector whose candidates they were trained on. Imports no torch."""

from __future__ import annotations

from apps.medical.models.classifier import NAME as SECOND_STAGE
from shared.deploy.artifact import Artifact
from shared.deploy.programs.store import weights_digest


def is_trained_for(second: Artifact, detector: Artifact) -> bool:
    """Whether ``second`` is a second stage that was trained on the candidates of ``detector``."""
    return second.manifest.name == SECOND_STAGE and second.manifest.data.get("detector") == weights_digest(detector)
