"""Quantises networks to INT8 for OpenVINO with NNCF, leaving some layers in floating point.

The range of an activation is its minimum and maximum over all calibration inputs. NNCF's default, the mean of the
inputs' maxima, clips rare values, and in a detector the rare values are the objects. Biases are corrected layer by
layer on the same inputs.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from shared.deploy.programs.program import Arrays

QUANTISED_OPERATIONS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul")
"""The OpenVINO operations that are quantised with their weights; ConvolutionBackpropData is deconvolution."""

SMOOTHING_ALPHA = 0.75
"""How much of the range of an activation's channels is moved into the weights (Xiao et al. 2023, "SmoothQuant")."""


def read_network(path: Path) -> Any:
    """Converts an ONNX file to an OpenVINO model with folded constants: NNCF cannot correct computed biases."""
    import openvino

    return openvino.convert_model(path)


def recurrent_layers(path: Path) -> list[str]:
    """The types of recurrent layers in an ONNX file, by their OpenVINO names."""
    from shared.deploy.programs.openvino import open_core

    kinds = {node.get_type_name() for node in open_core().read_model(path).get_ordered_ops()}
    return sorted(kinds & {f"{cell}{form}" for cell in ("LSTM", "GRU", "RNN") for form in ("Cell", "Sequence")})


def quantise(
    model: Any,
    rows: Sequence[Arrays],
    *,
    smoothing: float | None = None,
    floating: Collection[str] = (),
    correct_biases: bool = True,
) -> Any:
    """Returns ``model`` in INT8, calibrated on ``rows``; the layers named in ``floating`` stay in floating point.

    With ``smoothing``, activations are divided and weights multiplied channel by channel before both are quantised.
    Corrected biases compensate the error of earlier layers. Without ``correct_biases``, the quantisation of single
    layers can be undone by ``with_floating_point_layer``.
    """
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, AdvancedSmoothQuantParameters
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    nncf.set_log_level(logging.ERROR)
    alpha = -1.0 if smoothing is None else smoothing
    quantised_model = nncf.quantize(
        model.clone(),
        nncf.Dataset([dict(row) for row in rows]),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(rows),
        fast_bias_correction=False,
        model_type=None if smoothing is None else nncf.ModelType.TRANSFORMER,  # NNCF smooths only transformers
        ignored_scope=nncf.IgnoredScope(names=sorted(floating)) if floating else None,
        advanced_parameters=AdvancedQuantizationParameters(
            disable_bias_correction=not correct_biases,
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
            smooth_quant_alphas=AdvancedSmoothQuantParameters(convolution=alpha, matmul=-1.0),
        ),
    )
    fold_smoothing(quantised_model)
    return quantised_model


def layer_names(model: Any) -> list[str]:
    """The names of the layers that can be quantised, in topological order."""
    return [
        node.get_friendly_name() for node in model.get_ordered_ops() if node.get_type_name() in QUANTISED_OPERATIONS
    ]


def with_floating_point_layer(model: Any, name: str) -> Any:
    """Copies a quantised model without the quantisation of one layer's input; the layer's weights stay in INT8.

    Weights have one scale per output channel, the input has only one scale, so its quantisation costs more accuracy.
    """
    copied = model.clone()
    layer = _find_node(copied, name)
    input_node = layer.input_value(0).get_node()
    if input_node.get_type_name() == "FakeQuantize":
        layer.input(0).replace_source_output(input_node.input_value(0))
    return copied


def fold_smoothing(model: Any) -> int:
    """Folds multiplications by positive constants after a ReLU into the layer before it; returns their number.

    Smoothing inserts these multiplications, each of which is another pass over the activation. After a concatenation of
    the channels of several ReLUs, each of their layers takes its part of the factor. A multiplication stays if its ReLU
    has other readers.
    """
    folded = 0
    for node in list(model.get_ordered_ops()):
        if node.get_type_name() != "Multiply" or "nncf_smooth_quant" not in node.get_friendly_name():
            continue
        source, factor = node.input_value(0).get_node(), node.input_value(1).get_node()
        parts = _channel_parts(source, factor.get_data())
        if parts is None or not all(_can_fold(relu, scale) for relu, scale in parts):
            continue
        for relu, scale in parts:
            _scale_output_channels(relu.input_value(0).get_node(), scale)
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(source.output(0))
        folded += 1
    return folded


def _channel_parts(source: Any, scale: Any) -> list[tuple[Any, Any]] | None:
    """The operations whose channels make up ``source``, each with its part of ``scale``; None if undetermined."""
    if source.get_type_name() != "Concat":
        return [(source, scale)]
    sources = [value.get_node() for value in source.input_values()]
    channels = [value.get_partial_shape()[1] for value in source.input_values()]
    if source.get_attributes()["axis"] != 1 or len(source.output(0).get_target_inputs()) != 1:
        return None
    if any(count.is_dynamic for count in channels) or scale.ndim < 2:
        return None
    ends = np.cumsum([count.get_length() for count in channels])
    if scale.shape[1] == 1:
        return [(node, scale) for node in sources]
    return list(zip(sources, np.split(scale, ends[:-1], axis=1), strict=True))


def _can_fold(relu: Any, scale: Any) -> bool:
    """Whether ``scale`` can be folded into the layer before a ReLU: nothing else may read the values in between."""
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
        and _scale_constant(weights.get_node()) is not None
    )


_OUTPUT_AXIS = {"Convolution": 0, "ConvolutionBackpropData": 1}
"""The axis of the output channels in a layer's weights."""


def _scale_output_channels(add: Any, scale: Any) -> None:
    """Multiplies the weights and the bias of a layer channel by channel; ``add`` is the node that adds the bias."""
    from openvino import opset13

    layer, bias = add.input_value(0).get_node(), add.input_value(1).get_node()
    weights = layer.input_value(1).get_node()
    shape = [1] * len(layer.input_value(1).get_partial_shape())
    shape[_OUTPUT_AXIS[layer.get_type_name()]] = -1
    constant = _scale_constant(weights)
    scaled_weights = opset13.constant((constant.get_data() * scale.reshape(shape)).astype(np.float32)).output(0)
    if constant is weights:
        layer.input(1).replace_source_output(scaled_weights)
    else:
        weights.input(1).replace_source_output(scaled_weights)
    add.input(1).replace_source_output(opset13.constant(bias.get_data() * scale).output(0))


def _scale_constant(weights: Any) -> Any:
    """The constant to multiply in order to scale a layer's weights: the weights, or the scale of INT8 weights.

    Returns None if it is computed, or if another layer shares the weights.
    """
    if weights.get_type_name() == "Constant":
        return weights
    if weights.get_type_name() != "Multiply" or len(weights.output(0).get_target_inputs()) != 1:
        return None
    scale = weights.input_value(1).get_node()
    return scale if scale.get_type_name() == "Constant" else None


def _find_node(model: Any, name: str) -> Any:
    return next(node for node in model.get_ordered_ops() if node.get_friendly_name() == name)
