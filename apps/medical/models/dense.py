"""The detector's network alone, for export and for speed: a tile in, the maps of every level out."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from shared.app import DenseNetwork


class Maps(nn.Module):
    """MONAI's RetinaNet with its outputs as a tuple: logits of the three levels, then box codes of the three."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        # Its parts are MONAI's, which have no types.
        self.network: Any = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """``image`` (B, 1, X, Y, Z) in 0..1 to logits (B, A, ...) and codes (B, 6 A, ...)."""
        # The heads are called as they are in the network, less its checks for NaN, which cannot be exported.
        features = list(self.network.feature_extractor(image).values())
        classify, regress = self.network.classification_head, self.network.regression_head
        logits = [classify.cls_logits(classify.conv(level)) for level in features]
        codes = [regress.bbox_reg(regress.conv(level)) for level in features]
        return (*logits, *codes)


def dense(recipe: Any, detector: Any) -> DenseNetwork:
    """The network of a detector that ``recipe`` built, with a patch of zeros as its example."""
    names = [f"{kind}_{level}" for kind in ("logits", "codes") for level in range(3)]
    example = torch.zeros((1, 1, *recipe.input.patch_size))
    return DenseNetwork(module=Maps(detector.network).eval(), inputs={"image": example}, outputs=names)


def fold_batch_norm(detector: Any) -> Maps:
    """The maps of a detector's network for evaluation, with batch normalisation folded into the convolutions.

    The values are the network's but for rounding; the detector itself is left as it is.
    """
    network = copy.deepcopy(detector.network).eval()
    for module in list(network.modules()):
        for (name, layer), (after, norm) in pairwise(list(module.named_children())):
            if isinstance(layer, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d):
                setattr(module, name, fuse_conv_bn_eval(layer, norm))
                setattr(module, after, nn.Identity())
    network.to(memory_format=torch.channels_last_3d)
    return Maps(network).eval()
