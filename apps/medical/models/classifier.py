"""The second stage: a small 3D network that classifies a candidate from patches at two scales.

After Setio et al., Validation, comparison, and combination of algorithms for automatic detection of pulmonary nodules,
Med. Image Anal. 42, 2017: candidates are easy to find and hard to rank. The network also receives the detector's
score, so that its output is the joint score of both stages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from torch import nn

    from apps.medical.types import ChestInput

SCALES = (1, 3)
"""The spacings of the two patches, in multiples of the network's spacing."""

SCALAR_INPUTS = 2
"""Inputs besides the image: the detector's score and the diameter."""

BLOCK = 2
"""Size and stride of the first convolution in voxels."""

NAME = "lung_nodule_candidates"


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateClassifier:
    """Settings of the classifier.

    ``size`` is the patch size along x, y, z in voxels, in multiples of 8. ``channels`` is the number of channels of the
    first stage. ``hidden`` is the width of the layer that combines both scales with the scalar inputs.
    """

    size: tuple[int, int, int] = (32, 32, 16)
    channels: int = 16
    hidden: int = 64

    def __post_init__(self) -> None:
        if any(n < 8 or n % 8 for n in self.size) or min(self.channels, self.hidden) < 1:
            raise InvalidInputError(
                f"model.size is {self.size}, model.channels {self.channels} and model.hidden {self.hidden}; expected "
                "multiples of 8, and 1 or more"
            )

    @property
    def name(self) -> str:
        """The artifact's name."""
        return NAME

    def build(self, input: ChestInput) -> nn.Module:
        """The network with random weights."""
        return build(self)


def build(settings: CandidateClassifier) -> nn.Module:
    """A network that maps ``image`` (B, 2, X, Y, Z) in 0..1 and ``known`` (B, 2) to logits (B,).

    ``known`` holds the logit of the detector's score and the logarithm of the diameter in mm.
    """
    import torch
    from torch import nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = [settings.channels * n for n in (1, 2, 4)]
            self.near, self.around = _tower(widths), _tower(widths)
            features = len(SCALES) * widths[-1] + SCALAR_INPUTS
            self.head = nn.Sequential(nn.Linear(features, settings.hidden), nn.ReLU(), nn.Linear(settings.hidden, 1))

        def forward(self, image: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
            features = [self.near(image[:, :1]), self.around(image[:, 1:])]
            logits: torch.Tensor = self.head(torch.cat([*features, known], dim=1))
            return logits[:, 0]

    # channels_last is a third faster; the values are the same.
    return Network().to(memory_format=torch.channels_last_3d)


def _tower(widths: list[int]) -> nn.Sequential:
    """A convolution of 2 x 2 x 2 voxels to 8 channels, further convolutions, then a global maximum per channel.

    The first convolution loses no information, and the layers after it compute an eighth of the positions: this takes a
    third of the time of three poolings after convolutions at full resolution, with the same sensitivity.
    """
    from torch import nn

    layers: list[nn.Module] = [nn.Conv3d(1, BLOCK**3, BLOCK, stride=BLOCK, bias=False)]
    in_channels = BLOCK**3
    for stage, (convolutions, channels) in enumerate(zip((2, 2, 1), widths, strict=True)):
        if stage:
            layers.append(nn.MaxPool3d(2))
        for _ in range(convolutions):
            layers += [nn.Conv3d(in_channels, channels, 3, padding=1, bias=False), nn.BatchNorm3d(channels), nn.ReLU()]
            in_channels = channels
    return nn.Sequential(*layers, nn.AdaptiveMaxPool3d(1), nn.Flatten())
