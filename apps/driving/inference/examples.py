"""Frames of the samples: what the programs of the networks are timed and compared on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from apps.driving.adapters.registry import read_frames
from apps.driving.samples import samples
from apps.driving.types import Frame
from shared.deploy.sample_inputs import read_sample


def example_frame(sensor: Literal["lidar", "camera"]) -> Frame:
    """A frame of the samples that has a sweep, or an image; a real one where one is at hand."""

    def read(files: Sequence[Path]) -> Frame | None:
        frames = read_frames(files)
        return next(
            (one for one in frames if (one.cameras if sensor == "camera" else one.points_lidar_m is not None)), None
        )

    return read_sample(samples(), read)
