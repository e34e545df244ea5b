"""A small network of two inputs and two outputs, for images of any even size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shared.app import DenseNetwork


class Edges(nn.Module):
    """An image (B, 1, H, W) of any even size to a map as large and a mean a sample."""

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
