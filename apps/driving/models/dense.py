"""The dense network of a detector, which is the part that is exported.

Pillar encoding and scattering come before it, decoding and suppression after it: their shapes depend on the frame.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from apps.driving.models import fcos3d, lidar_rcnn, pointpillars
from apps.driving.models.configurations import MMDet3DModel
from apps.driving.models.fast import FoldedHeads, fast_fcos3d, fold_batch_norms, has_fast_pillars
from apps.driving.models.fast_layers import is_deformable
from apps.driving.models.head_maps import dense_maps
from apps.driving.models.pillars import HEADS
from apps.driving.types import BoxInput, CameraInput, LidarInput
from shared.app import DenseNetwork
from shared.recipe import Recipe


def dense(recipe: Recipe, model: nn.Module) -> DenseNetwork:
    """The dense network of a model that the recipe built, with example inputs.

    Raises ``NotImplementedError`` for a model that cannot be exported: an FCOS3D with deformable convolution, an
    imported camera model, and an imported model whose fast path differs from mmdet3d's modules.
    """
    if isinstance(recipe.model, lidar_rcnn.LidarRCNN) and isinstance(recipe.input, BoxInput):
        return dense_boxes(model, recipe.input)
    if isinstance(recipe.model, pointpillars.PointPillars) and isinstance(recipe.input, LidarInput):
        return dense_pillars(model, recipe.model, recipe.input)
    if isinstance(recipe.model, MMDet3DModel):
        return dense_imported(recipe.model, model)
    if not isinstance(recipe.model, fcos3d.FCOS3D) or not isinstance(recipe.input, CameraInput):
        raise NotImplementedError(f"{type(recipe.model).__name__} has no dense network to export")
    if is_deformable(model):
        raise NotImplementedError(
            "it has a deformable convolution, which is torchvision's and is not exported to ONNX; torch computes it"
        )
    return dense_camera(model)


def dense_imported(model: MMDet3DModel, detector: nn.Module) -> DenseNetwork:
    """The dense network of a detector that mmdet3d built from one of its configurations, or from the user's own."""
    if not model.fast:
        raise NotImplementedError("it is not exported: its fast path differs from mmdet3d's modules, which compute it")
    if model.sensor == "camera":
        raise NotImplementedError(
            "an imported camera network is not exported; torch computes it. An FCOS3D of your own gets ONNX when it "
            "is trained further (trivium train driving --recipe fcos3d_full --init ARTIFACT)"
        )
    return dense_heads(detector) if has_fast_pillars(detector) else dense_maps(fold_batch_norms(detector))


def dense_pillars(detector: nn.Module, model: pointpillars.PointPillars, input: LidarInput) -> DenseNetwork:
    """The dense network of a PointPillars that ``model`` built for ``input``."""
    example = {"pseudo_image": pointpillars.example_input(model, input)}
    return DenseNetwork(module=FoldedHeads(detector), inputs=example, outputs=HEADS, logits=HEADS[:1], traceable=True)


def dense_boxes(network: nn.Module, input: BoxInput) -> DenseNetwork:
    """The whole network of a second stage, for any number of boxes."""
    batches = {name: {0: "batch"} for name in (*lidar_rcnn.INPUTS, lidar_rcnn.OUTPUT)}
    example = lidar_rcnn.example_inputs(input)
    return DenseNetwork(
        module=network.eval(), inputs=example, outputs=[lidar_rcnn.OUTPUT], dynamic=batches, traceable=True
    )


def dense_heads(detector: nn.Module) -> DenseNetwork:
    """The dense network of an imported PointPillars for which ``has_fast_pillars`` is true."""
    canvas: Any = detector.middle_encoder
    shape = (2, canvas.in_channels, canvas.ny, canvas.nx)
    example = {"pseudo_image": torch.rand(shape, generator=torch.Generator().manual_seed(0))}
    return DenseNetwork(module=FoldedHeads(detector), inputs=example, outputs=HEADS, logits=HEADS[:1], traceable=True)


def dense_camera(detector: nn.Module) -> DenseNetwork:
    """The dense network of an FCOS3D, for images of any size in multiples of 32 pixels.

    The example's height and width are neither equal nor small, so that an exporter does not confuse them.
    """
    outputs = {name: {0: "batch", 2: f"{name}_h", 3: f"{name}_w"} for name in fcos3d.OUTPUTS}
    dynamic = {"image": {0: "batch", 2: "32*h", 3: "32*w"}} | outputs
    return DenseNetwork(
        module=fcos3d.ImageToHeads(fast_fcos3d(detector)),
        inputs={"image": fcos3d.example_image(160, 224, batch=2)},
        outputs=fcos3d.OUTPUTS,
        dynamic=dynamic,
        logits=[name for name in fcos3d.OUTPUTS if name.startswith("scores")],
        has_onnx=not is_deformable(detector),
        traceable=True,
    )
