"""Frames of the samples: what the programs of the networks are timed and compared on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from apps.driving.adapters.registry import read_frames
from apps.driving.samples import samples
from apps.driving.types import Boxes3D, BoxInput, Frame
from shared.deploy.sample_inputs import read_sample

if TYPE_CHECKING:
    from torch import Tensor


def example_frame(sensor: Literal["lidar", "camera"]) -> Frame:
    """A frame of the samples that has a sweep, or an image; a real one where one is at hand."""

    def read(files: Sequence[Path]) -> Frame | None:
        frames = read_frames(files)
        return next(
            (one for one in frames if (one.cameras if sensor == "camera" else one.points_lidar_m is not None)), None
        )

    return read_sample(samples(), read)


def example_boxes(input: BoxInput, count: int) -> dict[str, Tensor]:
    """So many boxes of any class and score about points of a sweep, as the second stage is given them."""
    from apps.driving.inference.second_stage import network_inputs

    points = example_frame("lidar").points_lidar_m
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
