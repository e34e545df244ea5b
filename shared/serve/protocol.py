"""The Open Inference Protocol, version 2, over REST, for the dense network of every artifact.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md, with the
extension of binary tensor data.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from shared.deploy.artifact import TensorSpec
from shared.errors import InvalidInputError
from shared.serve.admission import Memory, Workers
from shared.serve.networks import Network, Networks, join
from shared.serve.settings import Settings
from shared.serve.tensors import Array, BadTensor, InferRequest, read_request, write_response
from shared.serve.waiting import before, patient, while_connected

_BODIES_IN_MEMORY = 4
_LENGTH = "Inference-Header-Content-Length"


def protocol(
    networks: Networks, settings: Settings, ready: Callable[[], Awaitable[bool]], version: str, workers: Workers
) -> APIRouter:
    """The routes under /v2. ``ready`` says whether the whole server is; ``workers`` read and write tensors."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
    memory = Memory("the Open Inference Protocol", _BODIES_IN_MEMORY * settings.max_tensor_bytes)

    @router.get("", operation_id="oip_server")
    async def server() -> dict[str, Any]:
        """The server, what it speaks, and (beyond the protocol) which models it has."""
        return {"name": "trivium", "version": version, "extensions": ["binary_tensor_data"], "models": networks.names()}

    @router.get("/health/live", operation_id="oip_live")
    async def live() -> dict[str, bool]:
        """Whether the server runs."""
        return {"live": True}

    @router.get("/health/ready", operation_id="oip_ready")
    async def server_ready() -> JSONResponse:
        """Whether every model can answer (200) or not yet (503)."""
        state = await ready()
        return JSONResponse({"ready": state}, 200 if state else 503)

    @router.get("/models/{name}", operation_id="oip_model")
    @router.get("/models/{name}/versions/{version}", operation_id="oip_model_version")
    async def model(name: str, version: str | None = None) -> dict[str, Any]:
        """A model's inputs and outputs; -1 in a shape is any size."""
        network = networks.find(name, version)
        return {
            "name": name,
            "versions": networks.versions(name) if version is None else [version],
            "platform": "onnxruntime_onnx",
            "inputs": [_describe(spec) for spec in network.manifest.inputs],
            "outputs": [_describe(spec) for spec in network.manifest.outputs],
        }

    @router.get("/models/{name}/ready", operation_id="oip_model_ready")
    @router.get("/models/{name}/versions/{version}/ready", operation_id="oip_model_version_ready")
    async def model_ready(name: str, version: str | None = None) -> dict[str, Any]:
        """Whether the model can answer; loads it where that has not been done."""
        await networks.find(name, version).prepare()
        return {"name": name, "ready": True}

    @router.post("/models/{name}/infer", operation_id="oip_infer", openapi_extra=_BODY)
    @router.post("/models/{name}/versions/{version}/infer", operation_id="oip_infer_version", openapi_extra=_BODY)
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        """Runs the network on tensors."""
        network = networks.find(name, version)
        with network.metrics.failures(), network.places.one(), memory.share() as take:
            header_length = _header_length(request, settings.max_json_bytes)
            body = await _body(request, header_length, settings, take)
            work = _infer(network, body, header_length, settings, workers)
            answer, length = await while_connected(request, work)
        if length is None:
            return Response(answer, media_type="application/json")
        return Response(answer, media_type="application/octet-stream", headers={_LENGTH: str(length)})

    return router


async def _infer(
    network: Network, body: bytearray, header_length: int | None, settings: Settings, workers: Workers
) -> tuple[bytes, int | None]:
    manifest = network.manifest
    arrived = time.monotonic()
    deadline = arrived + settings.deadline_s
    async with before(deadline, network.what):
        request = await workers.run(read_request, body, header_length, manifest.inputs, manifest.outputs)
        decoded = time.monotonic()
        parts = await network.infer(request.inputs, deadline)
    computed = time.monotonic()
    answer = await workers.run(_write, request, network, parts, settings.max_json_bytes)
    done = time.monotonic()
    network.metrics.answered(request_s=done - arrived, input_s=decoded - arrived, output_s=done - computed)
    return answer


def _write(
    request: InferRequest, network: Network, parts: Sequence[Mapping[str, Array]], most_json: int
) -> tuple[bytes, int | None]:
    manifest, outputs = network.manifest, join(parts)
    if sum(outputs[name].nbytes for name in request.outputs if name not in request.binary) > most_json:
        raise InvalidInputError(
            "the outputs are more than this server writes as JSON; ask for binary_data, or for fewer"
        )
    return write_response(request, manifest.name, network.version, outputs, manifest.outputs)


async def _body(
    request: Request, header_length: int | None, settings: Settings, take: Callable[[int], None]
) -> bytearray:
    """The request's body. ``take`` is told of its size, before it is there where that is stated."""
    most = settings.max_tensor_bytes
    if header_length is None and settings.max_json_bytes < most:
        most, refusal = settings.max_json_bytes, _too_much_json(settings.max_json_bytes)
    else:
        refusal = InvalidInputError(
            f"the request is larger than this server takes ({most:,} bytes); send fewer rows at once, or raise "
            "TRIVIUM_MAX_TENSOR_BYTES",
            status=413,
        )
    stated = request.headers.get("content-length", "")
    known = len(stated) < 20 and stated.isdecimal()
    if known and int(stated) > most:
        raise refusal
    take(int(stated) if known else 0)
    body = bytearray()
    async for chunk in patient(request.stream(), settings.deadline_s):
        if len(body) + len(chunk) > most:
            raise refusal
        take(0 if known else len(chunk))
        body += chunk
    return body


def _header_length(request: Request, most: int) -> int | None:
    stated = request.headers.get(_LENGTH)
    if stated is None:
        return None
    if not stated.isdecimal() or len(stated) > 19:
        raise BadTensor(f"{_LENGTH} must be a number of bytes, not {stated[:40]!r}")
    if int(stated) > most:
        raise _too_much_json(most)
    return int(stated)


def _too_much_json(most: int) -> InvalidInputError:
    return InvalidInputError(
        f"the request has more JSON than this server reads ({most:,} bytes); send tensors as binary data "
        f"(binary_data_size, {_LENGTH}), or raise TRIVIUM_MAX_JSON_BYTES",
        status=413,
    )


def _describe(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "datatype": {"type": "string", "example": "FP32"},
        "parameters": {"type": "object"},
        "data": {"type": "array", "items": {}},
    },
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "id": {"type": "string"},
                        "parameters": {"type": "object"},
                        "inputs": {"type": "array", "items": _TENSOR},
                        "outputs": {"type": "array", "items": {"type": "object"}},
                    },
                }
            }
        },
    }
}
