"""Between the messages of gRPC and the bodies of REST: what the queue and the workers take is the latter alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from shared.serve.oip.grpc_messages import message
from shared.serve.worker.codec import DTYPES, BadTensor
from shared.serve.worker.messages import Blob

_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


def request_body(request: Any) -> tuple[bytearray, int]:
    """A ModelInferRequest as a body with binary tensors, and the length of its JSON part. All outputs are binary.

    Values come as ``raw_input_contents`` or as typed ``contents``. Raises ``BadTensor``.
    """
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise BadTensor(f"there are {len(request.inputs)} inputs and raw_input_contents of {len(raw)}")
    inputs, tail = [], []
    for number, given in enumerate(request.inputs):
        if raw and given.HasField("contents"):
            raise BadTensor(f"the input {given.name!r} has contents besides raw_input_contents; send one of them")
        tail.append(raw[number] if raw else _typed(given))
        parameters = {**_parameters(given.parameters), "binary_data_size": len(tail[-1])}
        inputs.append(
            {"name": given.name, "datatype": given.datatype, "shape": list(given.shape), "parameters": parameters}
        )
    head: dict[str, Any] = {
        "parameters": {**_parameters(request.parameters), "binary_data_output": True},
        "inputs": inputs,
    }
    if request.id:
        head["id"] = request.id
    if request.outputs:
        head["outputs"] = [{"name": one.name, "parameters": _parameters(one.parameters)} for one in request.outputs]
    written = json.dumps(head).encode()
    return bytearray(b"".join([written, *tail])), len(written)


def response(parts: Sequence[Blob]) -> Any:
    """The ModelInferResponse of an answer's body: its JSON, then each tensor."""
    document, tensors = json.loads(bytes(parts[0])), parts[1:]
    made = message("ModelInferResponse")(
        model_name=document["model_name"], model_version=document["model_version"], id=document.get("id", "")
    )
    for output, tensor in zip(document["outputs"], tensors, strict=True):
        made.outputs.add(name=output["name"], datatype=output["datatype"], shape=output["shape"])
        made.raw_output_contents.append(bytes(tensor))
    return made


def _typed(given: Any) -> bytes:
    field = _CONTENTS.get(given.datatype)
    if field is None:
        raise BadTensor(f"the input {given.name!r} is {given.datatype}; send its values in raw_input_contents")
    others = [descriptor.name for descriptor, _ in given.contents.ListFields() if descriptor.name != field]
    if others:
        raise BadTensor(
            f"the input {given.name!r} is {given.datatype}; its values belong into {field}, not {others[0]}"
        )
    try:
        values = np.array(getattr(given.contents, field), np.dtype(DTYPES[given.datatype]).newbyteorder("<"))
    except OverflowError as error:
        raise BadTensor(f"the input {given.name!r} has values that {given.datatype} cannot hold") from error
    return values.tobytes()


def _parameters(given: Any) -> dict[str, Any]:
    """Parameters as JSON has them; which are known, and of which type, the protocol's schema says."""
    found = {}
    for name, parameter in given.items():
        choice = parameter.WhichOneof("parameter_choice")
        found[name] = None if choice is None else getattr(parameter, choice)
    return found
