"""Converts between gRPC messages and REST bodies: the queue and the workers take only the latter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from shared.serve.oip.grpc_messages import message
from shared.serve.worker.codec import DTYPES, BadTensor
from shared.serve.worker.messages import Blob

_CONTENTS_FIELDS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


def request_body(request: Any) -> tuple[bytearray, int]:
    """Converts a ModelInferRequest to a body with binary tensors; returns it and the length of its JSON part in bytes.

    The body requests all outputs as binary data. Values are in ``raw_input_contents`` or in typed ``contents``. Raises
    ``BadTensor`` if they do not match the inputs.
    """
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise BadTensor(f"there are {len(request.inputs)} inputs, but raw_input_contents has {len(raw)}")
    inputs, tensors = [], []
    for number, tensor in enumerate(request.inputs):
        if raw and tensor.HasField("contents"):
            raise BadTensor(f"the input {tensor.name!r} has both contents and raw_input_contents; send only one")
        tensors.append(raw[number] if raw else _typed_contents(tensor))
        parameters = {**_parameters(tensor.parameters), "binary_data_size": len(tensors[-1])}
        inputs.append(
            {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape), "parameters": parameters}
        )
    header: dict[str, Any] = {
        "parameters": {**_parameters(request.parameters), "binary_data_output": True},
        "inputs": inputs,
    }
    if request.id:
        header["id"] = request.id
    if request.outputs:
        header["outputs"] = [
            {"name": output.name, "parameters": _parameters(output.parameters)} for output in request.outputs
        ]
    encoded = json.dumps(header).encode()
    return bytearray(b"".join([encoded, *tensors])), len(encoded)


def response(parts: Sequence[Blob]) -> Any:
    """Converts the parts of a response body, its JSON and then each tensor, to a ModelInferResponse."""
    document, tensors = json.loads(bytes(parts[0])), parts[1:]
    reply = message("ModelInferResponse")(
        model_name=document["model_name"], model_version=document["model_version"], id=document.get("id", "")
    )
    for output, tensor in zip(document["outputs"], tensors, strict=True):
        reply.outputs.add(name=output["name"], datatype=output["datatype"], shape=output["shape"])
        reply.raw_output_contents.append(bytes(tensor))
    return reply


def _typed_contents(tensor: Any) -> bytes:
    """The typed ``contents`` of an input tensor as little-endian bytes."""
    field = _CONTENTS_FIELDS.get(tensor.datatype)
    if field is None:
        raise BadTensor(f"the input {tensor.name!r} is {tensor.datatype}; send its values in raw_input_contents")
    others = [descriptor.name for descriptor, _ in tensor.contents.ListFields() if descriptor.name != field]
    if others:
        raise BadTensor(
            f"the input {tensor.name!r} is {tensor.datatype}; its values belong in {field}, not {others[0]}"
        )
    try:
        values = np.array(getattr(tensor.contents, field), np.dtype(DTYPES[tensor.datatype]).newbyteorder("<"))
    except OverflowError as error:
        raise BadTensor(f"the input {tensor.name!r} has values that {tensor.datatype} cannot hold") from error
    return values.tobytes()


def _parameters(parameters: Any) -> dict[str, Any]:
    """Parameters as JSON values. The schema of the protocol checks their names and types later."""
    values = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        values[name] = None if choice is None else getattr(parameter, choice)
    return values
