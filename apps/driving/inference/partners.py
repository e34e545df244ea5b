"""Which second stage goes with which detector, by the weights that it has learnt from. It needs no torch."""

from __future__ import annotations

from apps.driving.models import SECOND_STAGE
from shared.deploy.artifact import Artifact
from shared.deploy.programs.store import weights_digest


def belongs_to(second: Artifact, detector: Artifact) -> bool:
    """Whether it is a second stage, and has learnt from this detector's boxes."""
    if second.manifest.name != SECOND_STAGE:
        return False
    return bool(second.recipe()["recipe"]["input"].get("weights") == weights_digest(detector))
