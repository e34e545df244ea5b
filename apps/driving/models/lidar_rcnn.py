"""The second stage: a small PointNet that corrects each of a detector's boxes from the points in and around it.

After Li, Wang and Wang, LiDAR R-CNN: An Efficient and Universal 3D Object Detector, CVPR 2021. A grid of pillars blurs
what distinguishes a car from a hedge, and where its sides are; here every point enters at its exact position. Each
point comes with its distances from the box's faces, which tell the network the size of the box. The detector's score is
an input too, so that the output is the joint score of both stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from apps.driving.types import BoxInput
from shared.errors import InvalidInputError
from shared.recipe import Axis

INPUTS, OUTPUT = ("points", "size", "known"), "refined"
FEATURE_COUNT = 12
"""The number of box features besides its points and its class; see ``inference/box_codes.py``."""
OUTPUT_COUNT = 9
"""The number of outputs: the score's logit; the shift along the box, across it and up, in metres; the logarithms of the
factors of length, width and height; the rotation in radians; the logit of a rotation by 180 degrees."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LidarRCNN:
    """``widths`` are those of the layers that encode each point, ``hidden`` is that of the two layers that follow."""

    sensor: ClassVar[Literal["lidar"]] = "lidar"
    name: Literal["lidar_rcnn"] = "lidar_rcnn"
    widths: tuple[int, ...] = (64, 64, 128, 256)
    hidden: int = 128

    def __post_init__(self) -> None:
        if not self.widths or min(*self.widths, self.hidden) < 1:
            raise InvalidInputError(f"model.widths is {self.widths} and model.hidden {self.hidden}; expected 1 or more")

    def build(self, input: BoxInput) -> nn.Module:
        """The network with random weights."""
        return BoxNetwork(self, len(input.classes))

    def class_axes(self, classes: Sequence[str]) -> dict[str, Axis]:
        """The parameters of the box features, which end with the class."""
        return {"head.0.weight": Axis(1, [*range(self.widths[-1] + FEATURE_COUNT), *classes])}


class BoxNetwork(nn.Module):
    """Maps ``points`` (B, K, 3) in the box's frame in metres, ``size`` (B, 3) and the box features ``known`` (B, F) to
    (B, ``OUTPUT_COUNT``)."""

    def __init__(self, settings: LidarRCNN, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width_in = 9
        for width in settings.widths:
            layers += [nn.Linear(width_in, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
            width_in = width
        self.each = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Linear(width_in + FEATURE_COUNT + classes, settings.hidden),
            nn.ReLU(),
            nn.Linear(settings.hidden, settings.hidden),
            nn.ReLU(),
            nn.Linear(settings.hidden, OUTPUT_COUNT),
        )

    def forward(self, points: Tensor, size: Tensor, known: Tensor) -> Tensor:
        half = size[:, None] / 2
        # For each point its position, and its distance inside the upper and the lower face along each axis.
        point_features = torch.cat([points, half - points, half + points], dim=2)
        encoded = self.each(point_features.flatten(0, 1)).unflatten(0, (-1, points.shape[1]))
        refined: Tensor = self.head(torch.cat([encoded.amax(dim=1), known], dim=1))
        return refined


def example_inputs(input: BoxInput) -> dict[str, Tensor]:
    """Random inputs for two boxes."""
    generator = torch.Generator().manual_seed(0)
    feature_count = FEATURE_COUNT + len(input.classes)
    shapes: dict[str, Sequence[int]] = {"points": (input.points, 3), "size": (3,), "known": (feature_count,)}
    return {name: torch.rand((2, *shape), generator=generator) for name, shape in shapes.items()}
