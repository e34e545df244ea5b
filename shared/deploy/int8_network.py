"""A network in INT8 for OpenVINO: made by NNCF, with some layers left in floating point.

Ranges of activations are those of all calibration inputs: NNCF's default, the mean of the inputs' largest values,
cuts off what is rare, which in a detector are the objects. Biases are corrected layer by layer on those inputs.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from shared.deploy.programs.program import Arrays

LAYERS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul")
"""The operations that are quantised with their weights; deconvolution is the third."""

SMOOTHING = 0.75
"""How much of the spread of an activation's channels is moved into the weights (Xiao et al. 2023, "SmoothQuant")."""


def read_network(path: Path) -> Any:
    """OpenVINO's model of an ONNX, with its constants folded: NNCF corrects no bias that is computed from shapes."""
    import openvino

    return openvino.convert_model(path)


def recurrent_layers(path: Path) -> list[str]:
    """The kinds of recurrent layers in an ONNX, by OpenVINO's names of them."""
    from shared.deploy.programs.openvino import open_core

    kinds = {node.get_type_name() for node in open_core().read_model(path).get_ordered_ops()}
    return sorted(kinds & {f"{cell}{form}" for cell in ("LSTM", "GRU", "RNN") for form in ("Cell", "Sequence")})


def quantised(
    model: Any,
    rows: Sequence[Arrays],
    *,
    smoothing: float | None = None,
    floating: Collection[str] = (),
    correct_biases: bool = True,
) -> Any:
    """``model`` in INT8, calibrated on ``rows``; the layers called ``floating`` stay as they are.

    With ``smoothing`` activations are divided channel by channel, and weights multiplied, before both are quantised.
    Biases make up for what the layers before them lose, so that without ``correct_biases`` layers can be undone by
    ``in_floating_point`` one by one.
    """
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, AdvancedSmoothQuantParameters
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    nncf.set_log_level(logging.ERROR)
    alpha = -1.0 if smoothing is None else smoothing
    made = nncf.quantize(
        model.clone(),
        nncf.Dataset([dict(row) for row in rows]),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(rows),
        fast_bias_correction=False,
        model_type=None if smoothing is None else nncf.ModelType.TRANSFORMER,  # where alone NNCF smooths
        ignored_scope=nncf.IgnoredScope(names=sorted(floating)) if floating else None,
        advanced_parameters=AdvancedQuantizationParameters(
            disable_bias_correction=not correct_biases,
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
            smooth_quant_alphas=AdvancedSmoothQuantParameters(convolution=alpha, matmul=-1.0),
        ),
    )
    fold_smoothing(made)
    return made


def layers(model: Any) -> list[str]:
    """The names of the layers that would be quantised, from the inputs on."""
    return [node.get_friendly_name() for node in model.get_ordered_ops() if node.get_type_name() in LAYERS]


def in_floating_point(quantised: Any, name: str) -> Any:
    """A copy of a quantised model in which one layer's input is not quantised; its weights stay as they are in INT8.

    Each output of a layer has a scale of its own for its weights; of the two, the input's single one costs more.
    """
    copy = quantised.clone()
    layer = _named(copy, name)
    source = layer.input_value(0).get_node()
    if source.get_type_name() == "FakeQuantize":
        layer.input(0).replace_source_output(source.input_value(0))
    return copy


def fold_smoothing(model: Any) -> int:
    """Moves multiplications by positive constants from behind a ReLU into the layer before it; returns how many.

    That is where smoothing puts them, and each would be one more pass over the activation. Behind a concatenation of
    several ReLUs' channels each of their layers takes its part. One whose ReLU is read by others too stays.
    """
    folded = 0
    for node in list(model.get_ordered_ops()):
        if node.get_type_name() != "Multiply" or "nncf_smooth_quant" not in node.get_friendly_name():
            continue
        before, factor = node.input_value(0).get_node(), node.input_value(1).get_node()
        parts = _parts(before, factor.get_data())
        if parts is None or not all(_foldable(relu, scale) for relu, scale in parts):
            continue
        for relu, scale in parts:
            _scale_outputs(relu.input_value(0).get_node(), scale)
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(before.output(0))
        folded += 1
    return folded


def _parts(before: Any, scale: Any) -> list[tuple[Any, Any]] | None:
    """The operations whose channels make up ``before``, each with its part of ``scale``; None where nobody can tell."""
    if before.get_type_name() != "Concat":
        return [(before, scale)]
    sources = [value.get_node() for value in before.input_values()]
    channels = [value.get_partial_shape()[1] for value in before.input_values()]
    if before.get_attributes()["axis"] != 1 or len(before.output(0).get_target_inputs()) != 1:
        return None
    if any(count.is_dynamic for count in channels) or scale.ndim < 2:
        return None
    ends = np.cumsum([count.get_length() for count in channels])
    if scale.shape[1] == 1:
        return [(source, scale) for source in sources]
    return list(zip(sources, np.split(scale, ends[:-1], axis=1), strict=True))


def _foldable(relu: Any, scale: Any) -> bool:
    """Whether the layer before a ReLU can take on ``scale`` for each channel, and nobody else reads what is between."""
    if relu.get_type_name() != "Relu" or len(relu.output(0).get_target_inputs()) != 1 or not (scale > 0).all():
        return False
    add = relu.input_value(0).get_node()
    if add.get_type_name() != "Add" or len(add.output(0).get_target_inputs()) != 1:
        return False
    layer, bias = add.input_value(0).get_node(), add.input_value(1).get_node()
    if layer.get_type_name() not in _OUTPUT_AXIS or bias.get_type_name() != "Constant":
        return False
    weights, outputs = layer.input_value(1), _OUTPUT_AXIS[layer.get_type_name()]
    return (
        scale.size in (1, weights.get_partial_shape()[outputs].get_length())
        and _scaled_constant(weights.get_node()) is not None
    )


_OUTPUT_AXIS = {"Convolution": 0, "ConvolutionBackpropData": 1}
"""Where a layer's weights have its output channels."""


def _scale_outputs(add: Any, scale: Any) -> None:
    """Multiplies the weights and the bias of a layer, channel by channel; ``add`` adds the bias."""
    from openvino import opset13

    layer, bias = add.input_value(0).get_node(), add.input_value(1).get_node()
    weights = layer.input_value(1).get_node()
    shape = [1] * len(layer.input_value(1).get_partial_shape())
    shape[_OUTPUT_AXIS[layer.get_type_name()]] = -1
    constant = _scaled_constant(weights)
    changed = opset13.constant((constant.get_data() * scale.reshape(shape)).astype(np.float32)).output(0)
    if constant is weights:
        layer.input(1).replace_source_output(changed)
    else:
        weights.input(1).replace_source_output(changed)
    add.input(1).replace_source_output(opset13.constant(bias.get_data() * scale).output(0))


def _scaled_constant(weights: Any) -> Any:
    """What scales a layer's weights: the weights themselves, or the scale of those in INT8.

    None where that is computed, or where another layer has the same weights.
    """
    if weights.get_type_name() == "Constant":
        return weights
    if weights.get_type_name() != "Multiply" or len(weights.output(0).get_target_inputs()) != 1:
        return None
    scale = weights.input_value(1).get_node()
    return scale if scale.get_type_name() == "Constant" else None


def _named(model: Any, name: str) -> Any:
    return next(node for node in model.get_ordered_ops() if node.get_friendly_name() == name)
