"""The second stage: a small 3D network that looks at a candidate at two scales and says whether it is a nodule.

After Setio et al., Validation, comparison, and combination of algorithms for automatic detection of pulmonary nodules,
Med. Image Anal. 42, 2017: candidates are cheap to find and hard to rank. The network is given the detector's own score
beside the image, so that what it says is the score of both together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shared.errors import InvalidInputError

if TYPE_CHECKING:
    from torch import nn

    from apps.medical.types import ChestInput

SCALES = (1, 3)
"""A patch at the network's spacing, and one of so many times that around it."""

KNOWN = 2
"""What is known of a candidate beside its image: the detector's score and the size."""

BLOCK = 2
"""Voxels along each axis that the first layer takes together."""

NAME = "lung_nodule_candidates"


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateClassifier:
    """Settings: ``size`` of a patch along x, y, z in voxels, multiples of 8; ``channels`` after the first convolution.

    ``hidden`` is the width of the layer in which both scales and what is known meet.
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
        """The artifact's."""
        return NAME

    def build(self, input: ChestInput) -> nn.Module:
        """The network with weights of chance."""
        return build(self)


def build(settings: CandidateClassifier) -> nn.Module:
    """A network of ``image`` (B, 2, X, Y, Z) in 0..1 and ``known`` (B, 2) to logits (B,).

    ``known`` is the logit of the detector's score, and the logarithm of the diameter in mm.
    """
    import torch
    from torch import nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            wide = [settings.channels * n for n in (1, 2, 4)]
            self.near, self.around = _tower(wide), _tower(wide)
            seen = len(SCALES) * wide[-1] + KNOWN
            self.head = nn.Sequential(nn.Linear(seen, settings.hidden), nn.ReLU(), nn.Linear(settings.hidden, 1))

        def forward(self, image: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
            seen = [self.near(image[:, :1]), self.around(image[:, 1:])]
            out: torch.Tensor = self.head(torch.cat([*seen, known], dim=1))
            return out[:, 0]

    # A third faster with the channels innermost; the values are the same.
    return Network().to(memory_format=torch.channels_last_3d)


def _tower(wide: list[int]) -> nn.Sequential:
    """Blocks of 2 x 2 x 2 voxels to 8 channels, convolutions, then the greatest value of each channel anywhere.

    The blocks lose nothing and cost nothing, and what follows sees an eighth of the places: against three halvings
    after convolutions at full resolution a third of the time, at the same sensitivity.
    """
    from torch import nn

    layers: list[nn.Module] = [nn.Conv3d(1, BLOCK**3, BLOCK, stride=BLOCK, bias=False)]
    before = BLOCK**3
    for stage, (convolutions, channels) in enumerate(zip((2, 2, 1), wide, strict=True)):
        if stage:
            layers.append(nn.MaxPool3d(2))
        for _ in range(convolutions):
            layers += [nn.Conv3d(before, channels, 3, padding=1, bias=False), nn.BatchNorm3d(channels), nn.ReLU()]
            before = channels
    return nn.Sequential(*layers, nn.AdaptiveMaxPool3d(1), nn.Flatten())
