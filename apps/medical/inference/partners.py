"""Which second stage goes with which detector, by the weights that it has learnt from. It needs no torch."""

from __future__ import annotations

from apps.medical.models.classifier import NAME as SECOND_STAGE
from shared.deploy.artifact import Artifact
from shared.deploy.programs.store import weights_digest


def belongs_to(second: Artifact, detector: Artifact) -> bool:
    """Whether it is a second stage, and has learnt from this detector's marks."""
    return second.manifest.name == SECOND_STAGE and second.manifest.data.get("detector") == weights_digest(detector)
