"""A small network of two inputs and two outputs, for images of any even size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from shared.app import DenseNetwork
from shared.deploy.artifact import Artifact
from shared.deploy.programs.choosing import Network, open_program
from shared.deploy.programs.program import Program

WRITTEN = ["onnx", "openvino", "torchscript"]
"""The programs that can be written on any machine."""


class Edges(nn.Module):
    """Maps an image (B, 1, H, W) of any even size to a map of the same size and a mean for each sample."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, image: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        found = self.second(torch.relu(self.first(image))) * gain[:, None, None, None]
        return found, found.mean(dim=(1, 2, 3))


def network() -> DenseNetwork:
    sizes = {0: "batch", 2: "2*h", 3: "2*w"}
    return DenseNetwork(
        module=Edges().eval(),
        inputs={"image": torch.rand(2, 1, 8, 12), "gain": torch.tensor([1.0, 2.0])},
        outputs=("edges", "mean"),
        dynamic={"image": sizes, "gain": {0: "batch"}, "edges": sizes, "mean": {0: "batch"}},
    )


def opened(artifact: Artifact, build: Callable[[], DenseNetwork] = network, **settings: object) -> Program:
    example = {"image": torch.rand(1, 1, 32, 32), "gain": torch.ones(1)}
    return open_program(Network(artifact=artifact, build=build, example=lambda: example, **settings))
