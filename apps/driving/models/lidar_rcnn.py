"""The second stage: a small PointNet that looks at the points about each box of a detector, and corrects the box.

After Li, Wang and Wang, LiDAR R-CNN: An Efficient and Universal 3D Object Detector, CVPR 2021. A
grid of pillars blurs what tells a car from a hedge, and where its sides are; here every point counts at its place. Each
point comes with its distance from the box's faces, by which the network knows how large the box is. It is given the
detector's own score as well, so that what it says is the score of both together.
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
FACTS = 12
"""What is known of a box beside its points and its class; see ``inference/box_codes.py``."""
OUTPUTS = 9
"""The score's logit; how far to move along the box, across and up, in metres; the logarithms of the factors of length,
width and height; how far to turn, in radians; the logit of its being turned about."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LidarRCNN:
    """Settings: the ``widths`` of the layers that each point goes through, and of the two that follow, ``hidden``."""

    sensor: ClassVar[Literal["lidar"]] = "lidar"
    name: Literal["lidar_rcnn"] = "lidar_rcnn"
    widths: tuple[int, ...] = (64, 64, 128, 256)
    hidden: int = 128

    def __post_init__(self) -> None:
        if not self.widths or min(*self.widths, self.hidden) < 1:
            raise InvalidInputError(f"model.widths is {self.widths} and model.hidden {self.hidden}; expected 1 or more")

    def build(self, input: BoxInput) -> nn.Module:
        """The network with weights of chance."""
        return BoxNetwork(self, len(input.classes))

    def class_axes(self, classes: Sequence[str]) -> dict[str, Axis]:
        """What is known of a box ends with its class."""
        return {"head.0.weight": Axis(1, [*range(self.widths[-1] + FACTS), *classes])}


class BoxNetwork(nn.Module):
    """``points`` (B, K, 3) in the box's frame in metres, ``size`` (B, 3) and ``known`` (B, ...) to (B, ``OUTPUTS``)."""

    def __init__(self, settings: LidarRCNN, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 9
        for width in settings.widths:
            layers += [nn.Linear(before, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
            before = width
        self.each = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Linear(before + FACTS + classes, settings.hidden),
            nn.ReLU(),
            nn.Linear(settings.hidden, settings.hidden),
            nn.ReLU(),
            nn.Linear(settings.hidden, OUTPUTS),
        )

    def forward(self, points: Tensor, size: Tensor, known: Tensor) -> Tensor:
        half = size[:, None] / 2
        # For each point: where it is, and how far within the upper and the lower face along each axis.
        seen = torch.cat([points, half - points, half + points], dim=2)
        each = self.each(seen.flatten(0, 1)).unflatten(0, (-1, points.shape[1]))
        found: Tensor = self.head(torch.cat([each.amax(dim=1), known], dim=1))
        return found


def example_inputs(input: BoxInput) -> dict[str, Tensor]:
    """Two boxes of noise, as the network is given them."""
    generator = torch.Generator().manual_seed(0)
    facts = FACTS + len(input.classes)
    shapes: dict[str, Sequence[int]] = {"points": (input.points, 3), "size": (3,), "known": (facts,)}
    return {name: torch.rand((2, *shape), generator=generator) for name, shape in shapes.items()}
