"""Example network inputs from the sample frames: the programs of the networks are timed and compared on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from apps.driving.adapters.registry import read_frames
from apps.driving.inference.upload import image_at_focal_length
from apps.driving.models.decoding import Normalisation
from apps.driving.models.head_maps import canvas_size
from apps.driving.models.library import dense_parts
from apps.driving.models.pillars import PillarEncoder
from apps.driving.samples import samples
from apps.driving.types import Boxes3D, BoxInput, CameraInput, Frame, LidarInput
from shared.deploy.sample_inputs import read_sample

if TYPE_CHECKING:
    from torch import Tensor

    from apps.driving.inference.detect import LidarDetector
    from apps.driving.models.detectors import PointLayout


def _sample_frame(sensor: Literal["lidar", "camera"]) -> Frame:
    """A sample frame with a sweep, or with an image; a real one if available."""

    def read(files: Sequence[Path]) -> Frame | None:
        frames = read_frames(files)
        return next(
            (frame for frame in frames if (frame.cameras if sensor == "camera" else frame.points_lidar_m is not None)),
            None,
        )

    return read_sample(samples(), read)


@torch.inference_mode()
def example_pseudo_image(encoder: PillarEncoder, input: LidarInput, layout: PointLayout | None = None) -> Tensor:
    """The dense network's input (1, C, rows, columns), encoded from a sample sweep."""
    frame = _sample_frame("lidar")
    assert frame.points_lidar_m is not None
    points = torch.from_numpy(input.crop(frame.points_lidar_m if layout is None else layout.points(frame)))
    pseudo_image: Tensor = encoder.cpu()(points if layout is None else layout.to_network(points))
    return pseudo_image


def example_canvas(detector: LidarDetector) -> Tensor:
    """The pseudo-image (1, C, rows, columns) that the backbone of an imported detector gets for a sample sweep.

    ``detector`` has no program.
    """
    wrapped: Any = detector.network
    network: nn.Module = wrapped.detector
    backbone = dense_parts(network)[0]
    canvases: list[Tensor] = []

    def record(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        canvases.append(arguments[0].clone())

    handle = backbone.register_forward_pre_hook(record)
    try:
        detector.detect(_sample_frame("lidar"))
    finally:
        handle.remove()
    # A range that none of the sample's points is in leaves nothing to encode.
    return canvases[0] if canvases else torch.zeros(1, *canvas_size(network))


def example_image(input: CameraInput, colours: Normalisation) -> Tensor:
    """The network's input (1, 3, H, W), normalised from a sample image."""
    camera = next(iter(_sample_frame("camera").cameras.values()))
    return colours([image_at_focal_length(camera, input.training_focal_px, "cpu")[0]])


def example_boxes(input: BoxInput, count: int) -> dict[str, Tensor]:
    """The second stage's inputs for ``count`` boxes of random class and score, centred on points of a sample sweep."""
    from apps.driving.inference.second_stage import network_inputs

    points = _sample_frame("lidar").points_lidar_m
    assert points is not None
    random = np.random.default_rng(0)
    labels = random.integers(0, len(input.classes), count)
    boxes = Boxes3D(
        centre_lidar_m=points[random.integers(0, len(points), count), :3],
        size_m=np.array([input.classes[label].size_m for label in labels], np.float32),
        yaw=random.uniform(-np.pi, np.pi, count).astype(np.float32),
        names=tuple(input.classes[label].name for label in labels),
        scores=random.uniform(0.05, 0.95, count).astype(np.float32),
    )
    return network_inputs(boxes, points, input)[1]
