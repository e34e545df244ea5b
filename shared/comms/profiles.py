"""Neural networks for the cost model: the shapes of their parameters and the FLOPs of a forward pass. No torch."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Layer:
    """One parameter tensor; ``flops`` are the operations with it in a forward pass of one sample."""

    shape: tuple[int, ...]
    flops: float

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Profile:
    """A network in the order of its forward pass; ``activation_bytes`` per sample are kept for the backward pass."""

    name: str
    layers: Sequence[Layer]
    activation_bytes: float = 0.0

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def flops(self) -> float:
        """Operations of a forward pass of one sample; a multiplication and an addition count as two."""
        return sum(layer.flops for layer in self.layers)

    def powersgd_sent_fraction(self, rank: int) -> float:
        """The fraction of the gradient's bytes that PowerSGD sends (``shared/comms/compression.py``)."""
        sent = 0
        for layer in self.layers:
            rows, columns = layer.shape[0], layer.parameters // layer.shape[0]
            sent += (rows + columns) * rank if powersgd_compresses(layer.shape, rank) else layer.parameters
        return sent / self.parameters

    def powersgd_flops(self, rank: int) -> float:
        """Operations of PowerSGD in one step: M Q, Mᵀ P and P Qᵀ, and the orthogonalisation of P."""
        compressed = [layer for layer in self.layers if powersgd_compresses(layer.shape, rank)]
        return sum(6.0 * layer.parameters * rank + 2.0 * layer.shape[0] * rank**2 for layer in compressed)


def powersgd_compresses(shape: tuple[int, ...], rank: int) -> bool:
    """Whether PowerSGD sends a gradient of this shape as matrices P and Q, which are then at most half as large."""
    if len(shape) < 2:
        return False
    rows, columns = shape[0], math.prod(shape[1:])
    return 2 * (rows + columns) * rank <= rows * columns


def resnet50() -> Profile:
    """ResNet-50 (He et al., 2016) on 224x224 images: 25.6 million parameters, 8.2 GFLOPs."""
    layers: list[Layer] = []

    def convolution(inputs: int, outputs: int, kernel: int, side: int) -> None:
        weights = (outputs, inputs, kernel, kernel)
        layers.append(Layer(weights, 2.0 * math.prod(weights) * side * side))
        layers.extend([Layer((outputs,), 2.0 * outputs * side * side)] * 2)

    convolution(3, 64, 7, 112)
    inputs, side = 64, 56
    for stage, (width, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)]):
        for block in range(blocks):
            before = side
            side = side // 2 if stage and not block else side
            convolution(inputs, width, 1, before)
            convolution(width, width, 3, side)
            convolution(width, 4 * width, 1, side)
            if not block:
                convolution(inputs, 4 * width, 1, side)
            inputs = 4 * width
    layers += [Layer((1000, 2048), 2.0 * 1000 * 2048), Layer((1000,), 1000.0)]
    # About 11 million activations of two bytes, counted twice as Rajbhandari et al. (2020) do.
    return Profile("resnet50", layers, activation_bytes=45e6)


def bert_base() -> Profile:
    """BERT base (Devlin et al., 2019) on 128 tokens: 110 million parameters."""
    return _bert("bert-base", layers=12, width=768)


def bert_large() -> Profile:
    """BERT large on 128 tokens: 335 million parameters."""
    return _bert("bert-large", layers=24, width=1024)


def _bert(name: str, *, layers: int, width: int) -> Profile:
    tokens = 128
    parameters = [Layer((30522, width), 0.0), Layer((512, width), 0.0), Layer((2, width), 0.0)]

    def linear(inputs: int, outputs: int) -> None:
        parameters.append(Layer((outputs, inputs), 2.0 * inputs * outputs * tokens))
        parameters.append(Layer((outputs,), float(outputs * tokens)))

    parameters += [Layer((width,), float(width * tokens))] * 2
    for _ in range(layers):
        for _ in range(4):
            linear(width, width)
        # Attention scores and the weighted sum: 2 tokens^2 width each.
        parameters[-1] = Layer((width,), 4.0 * tokens * tokens * width)
        parameters += [Layer((width,), float(width * tokens))] * 4
        linear(width, 4 * width)
        linear(4 * width, width)
    linear(width, width)
    # Korthikanti et al., 2022, equation 2: s h L (34 + 5 a s / h) bytes, with a head size of 64.
    return Profile(name, parameters, activation_bytes=tokens * width * layers * (34 + 5 * tokens / 64))


PROFILES = {"resnet50": resnet50, "bert-base": bert_base, "bert-large": bert_large}


def read_profile(name: str) -> Profile:
    """The profile with this name, or a profile of the parameters in the safetensors file (or folder) ``name``.

    Only the header of the file is read. It says nothing about computation: every parameter counts as two operations.
    Raises ``InvalidInputError`` if there is no such profile or file, or if the file is damaged or has no parameters.
    """
    if name in PROFILES:
        return PROFILES[name]()
    path = Path(name)
    if path.is_dir():
        path = next(iter(sorted(path.glob("*.safetensors"))), path)
    if not path.is_file():
        raise InvalidInputError(f"there is no model {name}: use {', '.join(PROFILES)}, or a safetensors file")
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, 100_000_000)))
        shapes = [tuple(entry["shape"]) for key, entry in header.items() if key != "__metadata__"]
    except (OSError, ValueError, struct.error, KeyError, AttributeError) as error:
        raise InvalidInputError(f"{path} cannot be read as safetensors: {error}") from error
    layers = [Layer(shape or (1,), 2.0 * math.prod(shape)) for shape in shapes if math.prod(shape)]
    if not layers:
        raise InvalidInputError(f"{path} contains no parameters")
    return Profile(path.stem, layers)
