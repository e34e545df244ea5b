"""The dense network as ONNX, compared with torch when it is written."""

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
TOLERANCE = 1e-3
"""How far ONNX Runtime may be from torch at export, relative to the largest output."""


def write_onnx(dense: DenseNetwork, path: Path) -> dict[str, Tensor]:
    """Writes the network as one ONNX file and returns its outputs on the example inputs, after comparing the two."""
    import onnxruntime as ort

    # They say of every second node that they leave it as it is, and of every pass what it did: hundreds of lines.
    for logger in ("onnxscript", "onnxscript.optimizer", "onnx_ir"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    module = dense.module.cpu().eval()
    example = tuple(value.cpu() for value in dense.inputs.values())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = module(*example)
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
        # The exporter notes where each node came from, with the paths of this machine: half of a small file.
        node.metadata_props.clear()
    program.save(str(path), external_data=False)
    expected = [expected] if isinstance(expected, Tensor) else list(expected)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {name: value.numpy() for name, value in zip(dense.inputs, example, strict=True)}
    found = session.run(list(dense.outputs), feeds)
    for name, one, other in zip(dense.outputs, expected, found, strict=True):
        difference = float(np.abs(one.numpy() - other).max()) / max(float(one.abs().max()), 1e-6)
        if not difference < TOLERANCE:
            raise ArithmeticError(f"the exported network's output {name} differs from torch's by {difference:.2e}")
    for kind, tensors in ((session.get_inputs(), dense.inputs), (session.get_outputs(), dense.outputs)):
        # The exporter fixes an axis without a word where the network's code does.
        for tensor in kind:
            fixed = [axis for axis in _axes(dense).get(tensor.name, {}) if isinstance(tensor.shape[axis], int)]
            if tensor.name in tensors and fixed:
                raise ArithmeticError(
                    f"axis {fixed[0]} of {tensor.name} was exported as {tensor.shape}, not as dynamic"
                )
    return dict(zip(dense.outputs, expected, strict=True))


def dynamic_shapes(dense: DenseNetwork) -> tuple[dict[int, Any], ...]:
    """The dynamic axes of each input, as torch.export takes them. A label ``16*x`` is a multiple of 16."""
    known: dict[str, Any] = {}

    def size(label: str) -> Any:
        factor, _, name = label.rpartition("*")
        known.setdefault(name, torch.export.Dim(name))
        return int(factor) * known[name] if factor else known[name]

    return tuple({axis: size(label) for axis, label in _axes(dense).get(name, {}).items()} for name in dense.inputs)


def _axes(dense: DenseNetwork) -> dict[str, dict[int, str]]:
    if dense.dynamic is None:
        return {name: {0: "batch"} for name in (*dense.inputs, *dense.outputs)}
    return {name: dict(axes) for name, axes in dense.dynamic.items()}


def tensor_spec(name: str, value: Tensor, dense: DenseNetwork) -> TensorSpec:
    """The tensor ``name`` of the Open Inference Protocol; its dynamic axes are of any size."""
    moving = _axes(dense).get(name, {})
    shape = tuple(-1 if axis in moving else size for axis, size in enumerate(value.shape))
    return TensorSpec(name=name, datatype=_DATATYPES[value.dtype], shape=shape)
