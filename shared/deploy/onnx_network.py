"""Exports the dense network as ONNX and compares it with torch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared.app import DenseNetwork
from shared.deploy.artifact import TensorSpec
from shared.errors import InvalidInputError

log = logging.getLogger("trivium.programs")
_DATATYPES = {
    torch.float32: "FP32",
    torch.float16: "FP16",
    torch.float64: "FP64",
    torch.int64: "INT64",
    torch.int32: "INT32",
    torch.int16: "INT16",
    torch.int8: "INT8",
    torch.uint8: "UINT8",
    torch.bool: "BOOL",
}
MAX_EXPORT_ERROR = 1e-3
"""The maximum difference between ONNX Runtime and torch at export, relative to the largest output."""
_OPSET = 20
"""The version of ONNX's operators in traced files: the newest that torch's tracing exporter writes."""


def write_onnx(dense: DenseNetwork, path: Path) -> dict[str, Tensor]:
    """Writes the network as one ONNX file and returns its outputs on the example inputs.

    A traceable network is traced. If its file differs from torch for the example or for inputs of other sizes, and
    for all other networks, torch.export is used.

    Raises ``InvalidInputError`` if the network does not fit its description or cannot be exported, and
    ``ArithmeticError`` if ONNX Runtime's outputs differ from torch's, or if an axis that should be dynamic was exported
    with a fixed size.
    """
    # These loggers write hundreds of lines on unchanged nodes and optimisation passes.
    for logger in ("onnxscript", "onnxscript.optimizer", "onnx_ir"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    module = dense.module.cpu().eval()
    example = {name: value.cpu() for name, value in dense.inputs.items()}
    with torch.no_grad():
        expected_outputs = _outputs_by_name(dense, module(*example.values()))
    if dense.traceable:
        try:
            _trace(dense, module, example, path)
            _compare(dense, path, example, expected_outputs)
            resized = _resized_inputs(dense, example)
            with torch.no_grad():
                resized_outputs = _outputs_by_name(dense, module(*resized.values()))
            _compare(dense, path, resized, resized_outputs)
            return expected_outputs
        except Exception as error:  # torch's tracer and ONNX Runtime raise many kinds of errors
            reason = str(error).strip().partition("\n")[0]
            log.info("the network cannot be exported by tracing (%s); torch.export is used, which takes longer", reason)
    _export(dense, module, example, path)
    _compare(dense, path, example, expected_outputs)
    return expected_outputs


def _trace(dense: DenseNetwork, module: torch.nn.Module, example: Mapping[str, Tensor], path: Path) -> None:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is deprecated, and sizes that it fixes are compared below
        torch.onnx.export(
            module,
            tuple(example.values()),
            str(path),
            input_names=list(dense.inputs),
            output_names=list(dense.outputs),
            dynamic_axes=_dynamic_axes(dense),
            opset_version=_OPSET,
            dynamo=False,
        )


def _export(dense: DenseNetwork, module: torch.nn.Module, example: Mapping[str, Tensor], path: Path) -> None:
    from torch.onnx.errors import OnnxExporterError

    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                tuple(example.values()),
                input_names=list(dense.inputs),
                output_names=list(dense.outputs),
                dynamic_shapes=dynamic_shapes(dense),
                dynamo=True,
                verbose=False,
            )
    except OnnxExporterError as error:
        # The cause names the operation or the guard in its first line; torch's own explanation is general advice.
        cause = str(error.__cause__ or error).strip().partition("\n")[0]
        raise InvalidInputError(
            f"torch cannot export the network as ONNX: {cause}; change that part of it, or export only the part that "
            "can be (App.dense), or set has_onnx=False in its DenseNetwork: torch then computes it"
        ) from error
    assert program is not None
    for node in program.model.graph.all_nodes():
        # The exporter stores where each node came from, with paths of this machine: half the size of a small file.
        node.metadata_props.clear()
    program.save(str(path), external_data=False)


def _compare(
    dense: DenseNetwork, path: Path, inputs: Mapping[str, Tensor], expected_outputs: Mapping[str, Tensor]
) -> None:
    """Raises ``ArithmeticError`` if ONNX Runtime's outputs differ from torch's, or a dynamic axis has a fixed size."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found_outputs = session.run(list(dense.outputs), {name: value.numpy() for name, value in inputs.items()})
    for (name, expected_output), found_output in zip(expected_outputs.items(), found_outputs, strict=True):
        expected = expected_output.numpy()
        if expected.shape != found_output.shape:
            raise ArithmeticError(
                f"the exported network's output {name} has the shape {found_output.shape}, torch's {expected.shape}"
            )
        if not np.issubdtype(expected.dtype, np.floating):  # differences of bool and uint8 are not numbers
            expected, found_output = expected.astype(np.float64), found_output.astype(np.float64)
        difference = float(np.abs(expected - found_output).max()) / max(float(np.abs(expected).max()), 1e-6)
        if not difference < MAX_EXPORT_ERROR:
            raise ArithmeticError(f"the exported network's output {name} differs from torch's by {difference:.2e}")
    for ports, names in ((session.get_inputs(), dense.inputs), (session.get_outputs(), dense.outputs)):
        # The exporter silently fixes the size of an axis if the network's code does.
        for port in ports:
            fixed_axes = [axis for axis in _dynamic_axes(dense).get(port.name, {}) if isinstance(port.shape[axis], int)]
            if port.name in names and fixed_axes:
                raise ArithmeticError(
                    f"axis {fixed_axes[0]} of {port.name} was exported as {port.shape}, not as dynamic"
                )


def _resized_inputs(dense: DenseNetwork, example: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The example inputs with another size of each dynamic axis: a batch of several is cut to its first row, which is
    computed soonest, and other axes are lengthened by the smallest step that their label allows."""
    resized = dict(example)
    for name, axes in _dynamic_axes(dense).items():
        for axis, label in axes.items() if name in resized else ():
            if label == "batch" and resized[name].shape[axis] > 1:
                resized[name] = resized[name].narrow(axis, 0, 1)
                continue
            step = int(label.rpartition("*")[0] or 1)
            resized[name] = torch.cat([resized[name], resized[name].narrow(axis, 0, step)], axis)
    return resized


def _outputs_by_name(dense: DenseNetwork, found: Any) -> dict[str, Tensor]:
    """What the module returned, by the names of ``dense.outputs``.

    Raises ``InvalidInputError`` unless it is a tensor or a sequence of tensors, one for each name, whose dynamic axes
    exist, and all tensors have types of the Open Inference Protocol.
    """
    tensors = (found,) if isinstance(found, Tensor) else found
    if not isinstance(tensors, (tuple, list)) or not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise InvalidInputError(
            f"the network of App.dense returns an object of type {type(found).__name__}, not a tensor or a tuple of "
            "tensors; give DenseNetwork a module whose forward returns the tensors, such as the logits"
        )
    if len(tensors) != len(dense.outputs):
        raise InvalidInputError(
            f"the network of App.dense returns {len(tensors)} tensors, and DenseNetwork names {len(dense.outputs)} "
            f"outputs ({', '.join(dense.outputs)})"
        )
    outputs = dict(zip(dense.outputs, tensors, strict=True))
    for name, tensor in {**dense.inputs, **outputs}.items():
        if tensor.dtype not in _DATATYPES:
            raise InvalidInputError(
                f"{name} is a tensor of {tensor.dtype}, which cannot be served; convert it inside the network"
            )
        if absent := [axis for axis in _dynamic_axes(dense).get(name, {}) if axis >= tensor.ndim]:
            raise InvalidInputError(
                f"{name} has the shape {tuple(tensor.shape)} and no axis {absent[0]}, which should be dynamic; "
                "DenseNetwork.dynamic lists the dynamic axes, by default axis 0 of every tensor"
            )
    return outputs


def dynamic_shapes(dense: DenseNetwork) -> tuple[dict[int, Any], ...]:
    """The dynamic axes of each input for torch.export. The label ``16*x`` means a multiple of 16."""
    dims: dict[str, Any] = {}

    def size(label: str) -> Any:
        factor, _, name = label.rpartition("*")
        dims.setdefault(name, torch.export.Dim(name))
        return int(factor) * dims[name] if factor else dims[name]

    return tuple(
        {axis: size(label) for axis, label in _dynamic_axes(dense).get(name, {}).items()} for name in dense.inputs
    )


def _dynamic_axes(dense: DenseNetwork) -> dict[str, dict[int, str]]:
    if dense.dynamic is None:
        return {name: {0: "batch"} for name in (*dense.inputs, *dense.outputs)}
    return {name: dict(axes) for name, axes in dense.dynamic.items()}


def tensor_spec(name: str, value: Tensor, dense: DenseNetwork) -> TensorSpec:
    """The specification of the tensor ``name`` for the Open Inference Protocol, with -1 for dynamic axes."""
    dynamic = _dynamic_axes(dense).get(name, {})
    shape = tuple(-1 if axis in dynamic else size for axis, size in enumerate(value.shape))
    return TensorSpec(name=name, datatype=_DATATYPES[value.dtype], shape=shape)
