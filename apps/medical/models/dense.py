"""The detector's dense network for export and fast inference: from a tile to the maps of every level."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from apps.medical.models.classifier import SCALES, CandidateClassifier
from shared.app import DenseNetwork


class Maps(nn.Module):
    """MONAI's RetinaNet with its outputs as a tuple: logits of the three levels, then box codes of the three."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        # MONAI's modules are untyped.
        self.network: Any = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Maps ``image`` (B, 1, X, Y, Z) in 0..1 to logits (B, A, ...) and codes (B, 6 A, ...)."""
        # As in MONAI's forward pass, without its checks for NaN, which cannot be exported.
        features = list(self.network.feature_extractor(image).values())
        classify, regress = self.network.classification_head, self.network.regression_head
        logits = [classify.cls_logits(classify.conv(level)) for level in features]
        codes = [regress.bbox_reg(regress.conv(level)) for level in features]
        return (*logits, *codes)


INPUT = "image"
CLASSIFIER_INPUTS, CLASSIFIER_OUTPUT = ("image", "known"), "logit"
OUTPUTS = tuple(f"{kind}_{level}" for kind in ("logits", "codes") for level in range(3))


def dense(recipe: Any, detector: Any) -> DenseNetwork:
    """The dense network of a detector or second stage that ``recipe`` built."""
    if isinstance(recipe.model, CandidateClassifier):
        return dense_classifier(recipe.model, detector)
    return dense_network(detector)


def dense_classifier(settings: CandidateClassifier, network: nn.Module) -> DenseNetwork:
    """The second stage's network, unchanged, for any number of candidates."""
    batches = {name: {0: "batch"} for name in (*CLASSIFIER_INPUTS, CLASSIFIER_OUTPUT)}
    # Two empty candidates in the second stage's input format.
    candidates = {"image": torch.zeros((2, len(SCALES), *settings.size)), "known": torch.zeros((2, 2))}
    return DenseNetwork(
        module=network.eval(), inputs=candidates, outputs=[CLASSIFIER_OUTPUT], dynamic=batches, traceable=True
    )


def dense_network(detector: Any) -> DenseNetwork:
    """The network of a detector with batch normalisation folded in, for tiles of any size.

    The example input is two tiles of zeros with three different sizes, so that an exporter cannot confuse the axes.
    """
    strides = detector.size_divisible
    size = [unit * (3 + axis) for axis, unit in enumerate(strides)]
    sizes = {2 + axis: f"{unit}*{name}" for axis, (unit, name) in enumerate(zip(strides, "xyz", strict=True))}
    levels = {2: "x", 3: "y", 4: "z"}
    dynamic = {INPUT: {0: "batch", **sizes}} | {name: {0: "batch", **levels} for name in OUTPUTS}
    example = {INPUT: torch.zeros((2, 1, *size))}
    return DenseNetwork(
        module=fold_batch_norm(detector),
        inputs=example,
        outputs=OUTPUTS,
        dynamic=dynamic,
        logits=OUTPUTS[:3],
        traceable=True,
    )


def fold_batch_norm(detector: Any) -> Maps:
    """The detector's network in evaluation mode, with batch normalisation folded into the convolutions.

    The outputs equal the network's up to rounding. The detector itself is not changed.
    """
    network = copy.deepcopy(detector.network).eval()
    for module in list(network.modules()):
        for (name, layer), (next_name, norm) in pairwise(list(module.named_children())):
            if isinstance(layer, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d):
                setattr(module, name, fuse_conv_bn_eval(layer, norm))
                setattr(module, next_name, nn.Identity())
    for layer in network.modules():
        if type(layer) is nn.Conv3d:
            layer.__class__ = _Convolution
    network.to(memory_format=torch.channels_last_3d)
    return Maps(network).eval()


class _Convolution(nn.Conv3d):
    """Uses oneDNN for single fp32 images on a CPU too, where torch 2.14 uses a kernel that is up to 20 times slower."""

    def forward(self, input: Tensor) -> Tensor:
        is_cpu_fp32 = (
            input.device.type == "cpu" and input.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        )
        is_traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
        if is_traced or not is_cpu_fp32 or input.shape[0] != 1:
            return super().forward(input)
        assert isinstance(self.padding, tuple)
        return torch.mkldnn_convolution(
            input, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        )
