"""An image of one channel that a network in bf16 sees in full: its first convolution rounds neither it nor the weights.

bf16 has eight bits. Rounding a CT image to them, and the first layer's weights, makes more than half of the error of
the nodules' network in bf16. Each is the sum of two numbers of eight bits and a rest that does not matter, and a
convolution of one channel is bound by memory: three at once, of the products that matter, take up to a tenth of the
whole network's time more.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_STEPS = np.float32(256)
"""Into so many steps 0..1 is parted; values beyond are rounded as they were."""


def with_exact_image(model: Any) -> Any:
    """The OpenVINO model, in which each convolution of an input of one channel is three that add up to it in bf16.

    OpenVINO computes what elementwise operations make of an input in fp32, and rounds their results alone (2026.4).
    """
    from openvino import opset13

    changed = False
    for image in model.get_parameters():
        for target in image.output(0).get_target_inputs():
            layer = target.get_node()
            weights = layer.input_value(1).get_node() if layer.get_type_name() == "Convolution" else None
            if weights is None or weights.get_type_name() != "Constant" or weights.get_output_shape(0)[1] != 1:
                continue
            upper = opset13.multiply(opset13.floor(opset13.multiply(image, _STEPS)), 1 / _STEPS)
            lower = opset13.subtract(image, upper)
            target.replace_source_output(opset13.concat([upper, lower, upper], 1).output(0))
            exact = np.asarray(weights.get_data(), np.float32)
            rounded = _rounded(exact)
            parts = np.concatenate([rounded, rounded, exact - rounded], axis=1)
            layer.input(1).replace_source_output(opset13.constant(parts).output(0))
            changed = True
    if changed:
        model.validate_nodes_and_infer_types()
    return model


def _rounded(values: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The values in fp32 with the upper eight bits of theirs."""
    import torch

    return torch.tensor(values).bfloat16().float().numpy()
