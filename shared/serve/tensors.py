"""Tensors on the wire: JSON and binary data of the Open Inference Protocol, to and from NumPy.

Specification: https://github.com/kserve/open-inference-protocol (REST), and Triton's binary tensor data extension.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.deploy.artifact import TensorSpec
from shared.errors import InvalidInputError

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


_MOST_VALUES = 2**59
"""An array of 8-byte values cannot have more, an empty one included: its sizes without the zeros count."""


class BadTensor(InvalidInputError):
    """A request that does not fit the protocol or the model (400)."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=400)


@dataclass(frozen=True, kw_only=True, slots=True)
class InferRequest:
    """An inference request: arrays by input name, and which outputs are asked for, and which of them as binary."""

    id: str | None
    inputs: dict[str, Array]
    outputs: tuple[str, ...]
    binary: frozenset[str] = field(default_factory=frozenset)


def read_request(
    body: bytes | bytearray, header_length: int | None, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> InferRequest:
    """Reads a request body for a model with the given inputs and outputs.

    ``header_length`` is the header Inference-Header-Content-Length: how many bytes of the body are JSON, the rest
    being binary tensor data. Refuses with 400.
    """
    if header_length is not None and not 0 <= header_length <= len(body):
        raise BadTensor(f"Inference-Header-Content-Length is {header_length}, but the body has {len(body)} bytes")
    header = body if header_length is None else body[:header_length]
    tail = memoryview(body)[len(header) :]
    document = _object(_json(header), "the request")
    specs = {spec.name: spec for spec in inputs}
    arrays: dict[str, Array] = {}
    for entry in _list(document.get("inputs"), "inputs"):
        name = _text(entry, "name", "an input")
        if name not in specs:
            raise BadTensor(f"the model has no input {name!r}; it has {', '.join(specs)}")
        if name in arrays:
            raise BadTensor(f"the input {name!r} is given twice")
        size = _object(entry.get("parameters", {}), f"the parameters of {name!r}").get("binary_data_size")
        if size is None:
            arrays[name] = _from_json(entry, specs[name])
        else:
            if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(tail):
                raise BadTensor(f"binary_data_size of {name!r} is {size}, but {len(tail)} bytes are left in the body")
            arrays[name] = _from_bytes(entry, specs[name], tail[:size])
            tail = tail[size:]
    if missing := [name for name in specs if name not in arrays]:
        raise BadTensor(f"the input {missing[0]!r} is missing; the model needs {', '.join(specs)}")
    if len(tail):
        raise BadTensor(f"{len(tail)} bytes at the end of the body belong to no input; state binary_data_size")
    return _with_outputs(document, arrays, [spec.name for spec in outputs])


def _with_outputs(document: dict[str, Any], arrays: dict[str, Array], known: list[str]) -> InferRequest:
    everything = bool(_object(document.get("parameters", {}), "parameters").get("binary_data_output", False))
    asked: list[str] = []
    binary: set[str] = set()
    for entry in _list(document["outputs"], "outputs") if document.get("outputs") else [{"name": n} for n in known]:
        name = _text(entry, "name", "an output")
        if name not in known:
            raise BadTensor(f"the model has no output {name!r}; it has {', '.join(known)}")
        asked.append(name)
        if _object(entry.get("parameters", {}), f"the parameters of {name!r}").get("binary_data", everything):
            binary.add(name)
    identifier = document.get("id")
    if identifier is not None and not isinstance(identifier, str):
        raise BadTensor("id must be a string")
    return InferRequest(id=identifier, inputs=arrays, outputs=tuple(dict.fromkeys(asked)), binary=frozenset(binary))


def write_response(
    request: InferRequest, model: str, version: str, outputs: Mapping[str, Array], specs: Sequence[TensorSpec]
) -> tuple[bytes, int | None]:
    """The response body, and the length of its JSON part where binary data follows it (else None)."""
    datatypes = {spec.name: spec.datatype for spec in specs}
    entries: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for name in request.outputs:
        array = outputs[name]
        entry: dict[str, Any] = {"name": name, "datatype": datatypes[name], "shape": list(array.shape)}
        if name in request.binary:
            tail.append(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
            entry["parameters"] = {"binary_data_size": len(tail[-1])}
        elif array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InvalidInputError(
                f"the output {name!r} has values that JSON cannot hold (NaN or infinite); ask for binary_data"
            )
        else:
            entry["data"] = array.ravel().tolist()
        entries.append(entry)
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": entries}
    if request.id is not None:
        document["id"] = request.id
    header = json.dumps(document, separators=(",", ":")).encode()
    return (header + b"".join(tail), len(header)) if tail else (header, None)


def _from_json(entry: dict[str, Any], spec: TensorSpec) -> Array:
    shape = _shape(entry, spec)
    if "data" not in entry:
        raise BadTensor(f"the input {spec.name!r} has no data")
    try:
        given = np.asarray(entry["data"])
    except (ValueError, OverflowError) as error:
        raise BadTensor(f"the data of {spec.name!r} is not an array: {error}") from error
    dtype = np.dtype(DTYPES[spec.datatype])
    fitting = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}[dtype.kind]
    if given.size and given.dtype.kind not in fitting:
        raise BadTensor(f"the data of {spec.name!r} is not {spec.datatype}")
    if given.size != math.prod(shape) or (given.ndim > 1 and given.shape != shape):
        raise BadTensor(f"the data of {spec.name!r} has shape {list(given.shape)}, not {list(shape)}")
    if given.size and dtype.kind in "iuf":
        # Whole numbers are compared as such: the largest INT64 is no float.
        limits: Any = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
        number: Any = float if dtype.kind == "f" else int
        if number(given.max()) > number(limits.max) or number(given.min()) < number(limits.min):
            raise BadTensor(f"the data of {spec.name!r} has values that {spec.datatype} cannot hold")
    return given.astype(dtype).reshape(shape)


def _from_bytes(entry: dict[str, Any], spec: TensorSpec, data: memoryview) -> Array:
    shape = _shape(entry, spec)
    dtype = np.dtype(DTYPES[spec.datatype]).newbyteorder("<")
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise BadTensor(
            f"{spec.name!r} has {len(data)} bytes of binary data; {spec.datatype} of shape {list(shape)} "
            f"takes {math.prod(shape) * dtype.itemsize}"
        )
    return np.frombuffer(data, dtype).astype(DTYPES[spec.datatype]).reshape(shape)


def _shape(entry: dict[str, Any], spec: TensorSpec) -> tuple[int, ...]:
    """The stated shape, checked against the model's; also checks the datatype."""
    datatype = _text(entry, "datatype", f"the input {spec.name!r}")
    if datatype != spec.datatype:
        raise BadTensor(f"the input {spec.name!r} is {spec.datatype}, not {datatype}")
    shape = entry.get("shape")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise BadTensor(f"the input {spec.name!r} needs a shape: a list of sizes")
    if math.prod(max(n, 1) for n in shape) >= _MOST_VALUES:
        raise BadTensor(f"the input {spec.name!r} has a shape that no array can have")
    if len(shape) != len(spec.shape) or any(want not in (-1, n) for want, n in zip(spec.shape, shape, strict=True)):
        raise BadTensor(f"the input {spec.name!r} has shape {list(spec.shape)} (-1 is any size), not {shape}")
    return tuple(shape)


def _json(body: bytes | bytearray) -> object:
    def refuse(constant: str) -> float:
        raise BadTensor(f"the body holds {constant}, which JSON does not know")

    try:
        return json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise BadTensor(f"the body is not JSON: {error}") from error


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadTensor(f"{what} must be an object")
    return value


def _list(value: object, what: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise BadTensor(f"{what} must be a list of objects")
    return value


def _text(entry: dict[str, Any], key: str, what: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise BadTensor(f"{what} needs a {key}")
    return value
