"""Exports the dense network as ONNX and compares it with torch."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared.app import DenseNetwork
from shared.deploy.artifact import TensorSpec

_DATATYPES = {
    torch.float32: "FP32",
    torch.float16: "FP16",
    torch.int64: "INT64",
    torch.int32: "INT32",
    torch.bool: "BOOL",
}
MAX_EXPORT_ERROR = 1e-3
"""The maximum difference between ONNX Runtime and torch at export, relative to the largest output."""


def write_onnx(dense: DenseNetwork, path: Path) -> dict[str, Tensor]:
    """Writes the network as one ONNX file and returns its outputs on the example inputs.

    Raises ``ArithmeticError`` if ONNX Runtime's outputs differ from torch's, or if an axis that should be dynamic was
    exported with a fixed size.
    """
    import onnxruntime as ort

    # These loggers write hundreds of lines on unchanged nodes and optimisation passes.
    for logger in ("onnxscript", "onnxscript.optimizer", "onnx_ir"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    module = dense.module.cpu().eval()
    example = tuple(value.cpu() for value in dense.inputs.values())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected_outputs = module(*example)
        program = torch.onnx.export(
            module,
            example,
            input_names=list(dense.inputs),
            output_names=list(dense.outputs),
            dynamic_shapes=dynamic_shapes(dense),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph.all_nodes():
        # The exporter stores where each node came from, with paths of this machine: half the size of a small file.
        node.metadata_props.clear()
    program.save(str(path), external_data=False)
    expected_outputs = [expected_outputs] if isinstance(expected_outputs, Tensor) else list(expected_outputs)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {name: value.numpy() for name, value in zip(dense.inputs, example, strict=True)}
    found_outputs = session.run(list(dense.outputs), feeds)
    for name, expected_output, found_output in zip(dense.outputs, expected_outputs, found_outputs, strict=True):
        difference = float(np.abs(expected_output.numpy() - found_output).max()) / max(
            float(expected_output.abs().max()), 1e-6
        )
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
    return dict(zip(dense.outputs, expected_outputs, strict=True))


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
