"""Keeps a one-channel image exact in a bf16 network: the first convolution rounds neither the image nor its weights.

bf16 has eight significant bits. Rounding a CT image and the first layer's weights to bf16 causes more than half of the
bf16 error of the nodule network. Image and weights are therefore split into two bf16 numbers each, whose remainder is
negligible, and one convolution of three channels adds up the three products that matter. A convolution of one channel
is memory-bound, so that this adds at most a tenth to the whole network's time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_LEVELS = np.float32(256)
"""The number of levels into which the range 0..1 is split; values outside it are rounded as before."""


def with_exact_image(model: Any) -> Any:
    """Replaces each convolution of a one-channel input by an equal sum of three products in bf16; returns the model.

    OpenVINO computes the elementwise operations on an input in fp32 and rounds only their results (2026.4).
    """
    from openvino import opset13

    changed = False
    for image in model.get_parameters():
        for target in image.output(0).get_target_inputs():
            layer = target.get_node()
            weights = layer.input_value(1).get_node() if layer.get_type_name() == "Convolution" else None
            if weights is None or weights.get_type_name() != "Constant" or weights.get_output_shape(0)[1] != 1:
                continue
            upper = opset13.multiply(opset13.floor(opset13.multiply(image, _LEVELS)), 1 / _LEVELS)
            lower = opset13.subtract(image, upper)
            target.replace_source_output(opset13.concat([upper, lower, upper], 1).output(0))
            exact = np.asarray(weights.get_data(), np.float32)
            rounded = _round_to_bf16(exact)
            parts = np.concatenate([rounded, rounded, exact - rounded], axis=1)
            layer.input(1).replace_source_output(opset13.constant(parts).output(0))
            changed = True
    if changed:
        model.validate_nodes_and_infer_types()
    return model


def _round_to_bf16(values: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Rounds the values to bf16 and returns them in fp32."""
    import torch

    return torch.tensor(values).bfloat16().float().numpy()
