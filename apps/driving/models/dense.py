"""The part of a detector that is exported: without what differs between frames in shape.

Pillars and their scattering stay before it, decoding and suppression after it.
"""

from __future__ import annotations

from torch import nn

from apps.driving.models import fcos3d, pointpillars
from apps.driving.types import CameraInput, LidarInput
from shared.app import DenseNetwork
from shared.recipe import Recipe


def dense(recipe: Recipe, model: nn.Module) -> DenseNetwork:
    """The dense network of a model that the recipe built, with example inputs."""
    if isinstance(recipe.model, pointpillars.PointPillars) and isinstance(recipe.input, LidarInput):
        return DenseNetwork(
            module=pointpillars.PillarsToHeads(model),
            inputs={"pseudo_image": pointpillars.example_input(recipe.model, recipe.input)},
            outputs=("scores", "boxes", "directions"),
        )
    assert isinstance(recipe.model, fcos3d.FCOS3D) and isinstance(recipe.input, CameraInput)
    return DenseNetwork(
        module=fcos3d.ImageToHeads(model),
        inputs={"image": fcos3d.example_input(recipe.input)},
        outputs=fcos3d.OUTPUTS,
    )
