"""Converts tensors between NumPy and the JSON and binary data of the Open Inference Protocol."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from pydantic_core import from_json

from shared.deploy.artifact import TensorSpec
from shared.errors import InvalidInputError
from shared.serve.worker.schemas import (
    InferenceRequest,
    InferenceResponse,
    RequestInput,
    ResponseOutput,
    ResponseParameters,
)

Array = NDArray[Any]
DTYPES: Mapping[str, type[np.generic]] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}


_MAX_VALUES = 2**59
"""The maximum number of 8-byte values of a NumPy array. It also applies to empty arrays, with zero sizes ignored."""


class BadTensor(InvalidInputError):
    """A request that does not fit the protocol or the model (400)."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=400)


@dataclass(frozen=True, kw_only=True, slots=True)
class Inference:
    """A parsed request: arrays by input name, the requested outputs, and which of them to return as binary data.

    ``timeout_us`` is the client's timeout, in microseconds after the request's arrival.
    """

    id: str | None
    inputs: dict[str, Array]
    outputs: tuple[str, ...]
    binary: frozenset[str] = field(default_factory=frozenset)
    timeout_us: int | None = None


def read_request(
    body: bytes | bytearray | memoryview,
    header_length: int | None,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> Inference:
    """Parses a request body for a model with the given inputs and outputs.

    ``header_length`` is the value of the header Inference-Header-Content-Length: the number of bytes of JSON at the
    start of the body, which binary tensor data follows. Raises ``BadTensor`` (400).
    """
    if header_length is not None and not 0 <= header_length <= len(body):
        raise BadTensor(f"Inference-Header-Content-Length is {header_length}, but the body has {len(body)} bytes")
    view = memoryview(body)
    header, tail = (view, view[:0]) if header_length is None else (view[:header_length], view[header_length:])
    request = _parse(bytes(header))
    specs = {spec.name: spec for spec in inputs}
    arrays: dict[str, Array] = {}
    for entry in request.inputs:
        if entry.name not in specs:
            raise BadTensor(f"the model has no input {entry.name!r}; it has {', '.join(specs)}")
        if entry.name in arrays:
            raise BadTensor(f"the input {entry.name!r} is given twice")
        spec = specs[entry.name]
        size = None if entry.parameters is None else entry.parameters.binary_data_size
        if size is None:
            arrays[entry.name] = _from_json(entry, spec)
        elif size > len(tail):
            raise BadTensor(f"binary_data_size of {entry.name!r} is {size}, but {len(tail)} bytes are left in the body")
        else:
            arrays[entry.name] = _from_bytes(entry, spec, tail[:size])
            tail = tail[size:]
    if missing := [name for name in specs if name not in arrays]:
        raise BadTensor(f"the input {missing[0]!r} is missing; the model needs {', '.join(specs)}")
    if len(tail):
        raise BadTensor(f"{len(tail)} bytes at the end of the body belong to no input; state binary_data_size")
    return _select_outputs(request, arrays, [spec.name for spec in outputs])


def _parse(header: bytes) -> InferenceRequest:
    try:
        # pydantic's parser reads numbers exactly, and five times as fast as the json module.
        document = from_json(header, allow_inf_nan=False)
    except ValueError as error:
        raise BadTensor(f"the body is not JSON: {error}") from error
    try:
        return InferenceRequest.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        location = ".".join(map(str, first["loc"])) or "the body"
        raise BadTensor(f"the request cannot be read: {location}: {first['msg']}") from error


def _select_outputs(request: InferenceRequest, arrays: dict[str, Array], output_names: list[str]) -> Inference:
    all_binary = bool(request.parameters and request.parameters.binary_data_output)
    binary_by_output: dict[str, bool] = {}
    for entry in request.outputs or ():
        if entry.name not in output_names:
            raise BadTensor(f"the model has no output {entry.name!r}; it has {', '.join(output_names)}")
        binary_data = None if entry.parameters is None else entry.parameters.binary_data
        binary_by_output[entry.name] = all_binary if binary_data is None else binary_data
    binary_by_output = binary_by_output or dict.fromkeys(output_names, all_binary)
    binary = frozenset(name for name, as_binary in binary_by_output.items() if as_binary)
    timeout = request.parameters.timeout if request.parameters else None
    return Inference(id=request.id, inputs=arrays, outputs=tuple(binary_by_output), binary=binary, timeout_us=timeout)


def write_response(
    inference: Inference, model: str, version: str, outputs: Mapping[str, Array], specs: Sequence[TensorSpec]
) -> list[bytes | memoryview]:
    """The response body in parts: the JSON, then each tensor that was requested as binary data."""
    datatypes = {spec.name: spec.datatype for spec in specs}
    response_outputs: list[ResponseOutput] = []
    tail: list[memoryview] = []
    for name in inference.outputs:
        array = outputs[name]
        output = ResponseOutput(name=name, datatype=datatypes[name], shape=list(array.shape))
        if name in inference.binary:
            little_endian = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
            tail.append(little_endian.reshape(-1).view(np.uint8).data)
            output.parameters = ResponseParameters(binary_data_size=len(tail[-1]))
        elif array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InvalidInputError(
                f"the output {name!r} has values that JSON cannot hold (NaN or infinite); ask for binary_data"
            )
        else:
            output.data = array.ravel().tolist()
        response_outputs.append(output)
    response = InferenceResponse(model_name=model, model_version=version, outputs=response_outputs, id=inference.id)
    return [response.model_dump_json(exclude_none=True).encode(), *tail]


def _from_json(entry: RequestInput, spec: TensorSpec) -> Array:
    shape = _shape(entry, spec)
    if entry.data is None:
        raise BadTensor(f"the input {spec.name!r} has no data")
    try:
        values = np.asarray(entry.data)
    except (ValueError, OverflowError) as error:
        raise BadTensor(f"the data of {spec.name!r} is not an array: {error}") from error
    dtype = np.dtype(DTYPES[spec.datatype])
    allowed_kinds = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}[dtype.kind]
    if values.size and values.dtype.kind not in allowed_kinds:
        raise BadTensor(f"the data of {spec.name!r} is not {spec.datatype}")
    if values.size != math.prod(shape) or (values.ndim > 1 and values.shape != shape):
        raise BadTensor(f"the data of {spec.name!r} has shape {list(values.shape)}, not {list(shape)}")
    if values.size and dtype.kind in "iuf":
        # Integers are compared as integers: the largest INT64 has no exact float.
        limits: Any = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
        cast: Any = float if dtype.kind == "f" else int
        if cast(values.max()) > cast(limits.max) or cast(values.min()) < cast(limits.min):
            raise BadTensor(f"the data of {spec.name!r} has values that {spec.datatype} cannot hold")
    return values.astype(dtype).reshape(shape)


def _from_bytes(entry: RequestInput, spec: TensorSpec, data: memoryview) -> Array:
    shape = _shape(entry, spec)
    dtype = np.dtype(DTYPES[spec.datatype]).newbyteorder("<")
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise BadTensor(
            f"{spec.name!r} has {len(data)} bytes of binary data; {spec.datatype} of shape {list(shape)} "
            f"takes {math.prod(shape) * dtype.itemsize}"
        )
    array = np.frombuffer(data, dtype).astype(DTYPES[spec.datatype], copy=False).reshape(shape)
    # A large body is in aligned, writable memory and need not be copied; other data may be unaligned or read-only.
    return array if array.flags.aligned and array.flags.writeable else array.copy()


def _shape(entry: RequestInput, spec: TensorSpec) -> tuple[int, ...]:
    """The stated shape, after checking it and the datatype against the model's input."""
    if entry.datatype != spec.datatype:
        raise BadTensor(f"the input {spec.name!r} is {spec.datatype}, not {entry.datatype}")
    shape = entry.shape
    if math.prod(max(n, 1) for n in shape) >= _MAX_VALUES:
        raise BadTensor(f"the input {spec.name!r} has a shape that no array can have")
    if len(shape) != len(spec.shape) or any(size not in (-1, n) for size, n in zip(spec.shape, shape, strict=True)):
        raise BadTensor(f"the input {spec.name!r} has shape {list(spec.shape)} (-1 is any size), not {shape}")
    return tuple(shape)
