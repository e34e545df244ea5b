"""The Open Inference Protocol, version 2, over REST, for the dense network of every artifact.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md, with the
extension of binary tensor data.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from shared.deploy.artifact import TensorSpec
from shared.refusal import Refusal
from shared.serve.networks import Network, Networks, deadline_from_now
from shared.serve.settings import Settings
from shared.serve.tensors import BadTensor, read_request, write_response

_LENGTH = "Inference-Header-Content-Length"


def protocol(networks: Networks, settings: Settings, ready: Callable[[], bool], version: str) -> APIRouter:
    """The routes under /v2. ``ready`` says whether the whole server is."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

    @router.get("", operation_id="oip_server")
    def server() -> dict[str, Any]:
        """The server, what it speaks, and (beyond the protocol) which models it has."""
        return {"name": "trivium", "version": version, "extensions": ["binary_tensor_data"], "models": networks.names()}

    @router.get("/health/live", operation_id="oip_live")
    def live() -> dict[str, bool]:
        """Whether the server runs."""
        return {"live": True}

    @router.get("/health/ready", operation_id="oip_ready")
    def server_ready() -> JSONResponse:
        """Whether every model can answer (200) or not yet (503)."""
        state = ready()
        return JSONResponse({"ready": state}, 200 if state else 503)

    @router.get("/models/{name}", operation_id="oip_model")
    @router.get("/models/{name}/versions/{version}", operation_id="oip_model_version")
    def model(name: str, version: str | None = None) -> dict[str, Any]:
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
    def model_ready(name: str, version: str | None = None) -> dict[str, Any]:
        """Whether the model can answer; loads it where that has not been done."""
        networks.find(name, version).load()
        return {"name": name, "ready": True}

    @router.post("/models/{name}/infer", operation_id="oip_infer", openapi_extra=_BODY)
    @router.post("/models/{name}/versions/{version}/infer", operation_id="oip_infer_version", openapi_extra=_BODY)
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        """Runs the network on tensors."""
        network = networks.find(name, version)
        body = await _body(request, settings.max_tensor_bytes)
        header_length = _header_length(request)
        answer, length = await run_in_threadpool(_infer, network, body, header_length, settings)
        if length is None:
            return Response(answer, media_type="application/json")
        return Response(answer, media_type="application/octet-stream", headers={_LENGTH: str(length)})

    return router


def _infer(network: Network, body: bytes, header_length: int | None, settings: Settings) -> tuple[bytes, int | None]:
    manifest, metrics = network.manifest, network.metrics
    arrived = time.monotonic()
    try:
        request = read_request(body, header_length, manifest.inputs, manifest.outputs)
        decoded = time.monotonic()
        outputs = network.infer(request, deadline_from_now(settings))
        computed = time.monotonic()
        answer = write_response(request, manifest.name, network.version, outputs, manifest.outputs)
    except Refusal as refusal:
        metrics.failed(refusal.status)
        raise
    except Exception:
        metrics.failed(500)
        raise
    done = time.monotonic()
    metrics.answered(request_s=done - arrived, input_s=decoded - arrived, output_s=done - computed)
    return answer


async def _body(request: Request, most: int) -> bytes:
    parts, total = [], 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > most:
            raise Refusal(f"the request is larger than this server takes ({most:,} bytes)", status=413)
        parts.append(chunk)
    return b"".join(parts)


def _header_length(request: Request) -> int | None:
    stated = request.headers.get(_LENGTH)
    if stated is None:
        return None
    if not stated.isdecimal():
        raise BadTensor(f"{_LENGTH} must be a number of bytes, not {stated!r}")
    return int(stated)


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
