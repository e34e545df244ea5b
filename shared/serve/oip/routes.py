"""The routes of the Open Inference Protocol, for the dense network of every artifact."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from shared.errors import InvalidInputError
from shared.serve.middleware.draining import Drain
from shared.serve.oip.dependencies import NetworksDep, NewestDep, VersionDep
from shared.serve.oip.networks import NetworkModel, Networks
from shared.serve.oip.schemas import (
    InferenceError,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
    TensorMetadata,
)
from shared.serve.openapi import request_body
from shared.serve.runtime.connection import while_connected, within_upload_limits
from shared.serve.runtime.readiness import Readiness
from shared.serve.settings import Settings
from shared.serve.worker.codec import BadTensor
from shared.serve.worker.messages import Blob
from shared.serve.worker.schemas import InferenceRequest, InferenceResponse
from shared.store.cases import CaseStore

_LENGTH = "Inference-Header-Content-Length"
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")
_MOST_CHUNK = 1 << 16
_LEAST_PACKED = 1 << 14
_UNKNOWN: dict[int | str, dict[str, Any]] = {404: {"model": InferenceError, "description": "There is no such model"}}
_REFUSED: dict[int | str, dict[str, Any]] = {
    **_UNKNOWN,
    400: {"model": InferenceError, "description": "The request does not fit the protocol or the model"},
    408: {"model": InferenceError, "description": "The request came too slowly"},
    413: {"model": InferenceError, "description": "Too large"},
    415: {"model": InferenceError, "description": "Compressed in another way than gzip or deflate"},
    503: {"model": InferenceError, "description": "There is no room, or the model cannot be loaded"},
    504: {"model": InferenceError, "description": "The deadline passed"},
}
_UNUSABLE: dict[int | str, dict[str, Any]] = {
    422: {"model": InferenceError, "description": "The request cannot be read, or the outputs not written as JSON"}
}
_INFER: dict[str, Any] = {
    "response_model": InferenceResponse,
    "responses": _REFUSED,
    "openapi_extra": request_body("application/json", InferenceRequest),
}
router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], responses=_UNUSABLE)


HeaderLengthDep = Annotated[str | None, Header(alias=_LENGTH)]


async def get_readiness(request: Request) -> ServerReady:
    """``server_readiness`` of the server that is asked."""
    return await server_readiness(request.app.state)


async def server_readiness(state: Any) -> ServerReady:
    """Whether every model can answer, cases can be kept, and the server is not about to end."""
    readiness: Readiness = state.readiness
    drain: Drain = state.drain
    store: CaseStore = state.store
    if drain.begun:
        return ServerReady(ready=False, reason="the server is being shut down")
    fault = await run_in_threadpool(store.fault) or await readiness.fault()
    return ServerReady(ready=fault is None, reason=fault)


@router.get("", operation_id="oip_server")
async def server(request: Request, networks: NetworksDep) -> ServerMetadata:
    """The server, what it speaks, and (beyond the protocol) which models it has."""
    version = request.app.version
    return ServerMetadata(name="trivium", version=version, extensions=list(EXTENSIONS), models=networks.names())


@router.get("/health/live", operation_id="oip_live")
async def live() -> ServerLive:
    """Whether the server runs."""
    return ServerLive(live=True)


@router.get(
    "/health/ready", operation_id="oip_ready", response_model=ServerReady, responses={503: {"model": ServerReady}}
)
async def server_ready(state: Annotated[ServerReady, Depends(get_readiness)]) -> JSONResponse:
    """Whether every model can answer and cases can be kept (200), or not (503)."""
    return JSONResponse(state.model_dump(exclude_none=True), 200 if state.ready else 503)


@router.get("/models/{name}", operation_id="oip_model", responses=_UNKNOWN)
async def model(networks: NetworksDep, network: NewestDep) -> ModelMetadata:
    """A model's inputs and outputs; -1 in a shape is any size."""
    return describe(network, networks.versions(network.manifest.name))


@router.get("/models/{name}/versions/{version}", operation_id="oip_model_version", responses=_UNKNOWN)
async def model_version(network: VersionDep) -> ModelMetadata:
    """The inputs and outputs of one version of a model."""
    return describe(network, [network.version])


@router.get("/models/{name}/ready", operation_id="oip_model_ready", responses=_UNKNOWN)
async def model_ready(network: NewestDep) -> ModelReady:
    """Whether the model can answer; loads it where that has not been done."""
    return await _ready(network)


@router.get("/models/{name}/versions/{version}/ready", operation_id="oip_model_version_ready", responses=_UNKNOWN)
async def model_version_ready(network: VersionDep) -> ModelReady:
    """Whether one version of a model can answer; loads it where that has not been done."""
    return await _ready(network)


@router.post("/models/{name}/infer", operation_id="oip_infer", **_INFER)
async def infer(
    request: Request, networks: NetworksDep, network: NewestDep, header_length: HeaderLengthDep = None
) -> Response:
    """Runs the network on tensors. Where binary data follows the JSON part, a header states that part's length."""
    return await _answer(request, networks, network, header_length)


@router.post("/models/{name}/versions/{version}/infer", operation_id="oip_infer_version", **_INFER)
async def infer_version(
    request: Request, networks: NetworksDep, network: VersionDep, header_length: HeaderLengthDep = None
) -> Response:
    """Runs one version of the network on tensors, as the route without a version does."""
    return await _answer(request, networks, network, header_length)


async def _ready(network: NetworkModel) -> ModelReady:
    await network.model.get()
    return ModelReady(name=network.manifest.name, ready=True)


async def _answer(request: Request, networks: Networks, network: NetworkModel, stated: str | None) -> Response:
    settings = networks.settings
    with network.metrics.failures(), network.limit.admit(), networks.memory.reserve() as reserve:
        header_length = _header_length(stated, settings.max_json_bytes)
        body = await _body(request, header_length, settings, reserve)
        answer, length = await while_connected(request, network.infer(body, header_length))
    answer, packed = await _packed(answer, request.headers.get("accept-encoding", ""))
    headers = {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"} if packed else {}
    if length is None:
        return Response(bytes(answer), media_type="application/json", headers=headers)
    headers[_LENGTH] = str(length)
    return Response(bytes(answer), media_type="application/octet-stream", headers=headers)


async def _packed(answer: Blob, accepted: str) -> tuple[Blob, bool]:
    """The answer, compressed where the client asks for it by name and it is worth while."""
    if "gzip" not in accepted.lower() or len(answer) < _LEAST_PACKED:
        return answer, False
    return await run_in_threadpool(gzip.compress, answer, compresslevel=1), True


async def _body(
    request: Request, header_length: int | None, settings: Settings, reserve: Callable[[int], None]
) -> bytearray:
    """The request's body. ``reserve`` is told of its size, before it is there where that is stated."""
    most = settings.max_tensor_bytes
    if header_length is None and settings.max_json_bytes < most:
        most, refusal = settings.max_json_bytes, _too_much_json(settings.max_json_bytes)
    else:
        refusal = InvalidInputError(
            f"the request is larger than this server takes ({most:,} bytes); send fewer rows at once, or raise "
            "TRIVIUM_MAX_TENSOR_BYTES",
            status=413,
        )
    unpacked = _unpacker(request.headers.get("content-encoding", ""))
    stated = request.headers.get("content-length", "")
    known = len(stated) < 20 and stated.isdecimal() and unpacked is None
    if known and int(stated) > most:
        raise refusal
    reserve(int(stated) if known else 0)
    body = bytearray()
    async for received in within_upload_limits(request.stream(), settings):
        for chunk in [received] if unpacked is None else unpacked(received):
            if len(body) + len(chunk) > most:
                raise refusal
            reserve(0 if known else len(chunk))
            body += chunk
    return body


def _unpacker(encoding: str) -> Callable[[bytes], Iterator[bytes]] | None:
    """What unpacks a compressed body a little at a time, so that it cannot be larger than is found out; or None."""
    if encoding.lower() in ("", "identity"):
        return None
    if encoding.lower() not in ("gzip", "deflate"):
        raise InvalidInputError(f"the body's encoding {encoding[:40]!r} is none of gzip and deflate", status=415)
    decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)

    def unpack(data: bytes) -> Iterator[bytes]:
        try:
            while data:
                yield decompressor.decompress(data, _MOST_CHUNK)
                data = decompressor.unconsumed_tail
        except zlib.error as error:
            raise BadTensor(f"the body cannot be unpacked: {error}") from error

    return unpack


def _header_length(stated: str | None, most: int) -> int | None:
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


def describe(network: NetworkModel, versions: list[str]) -> ModelMetadata:
    """The inputs and outputs of a model that has these versions."""
    manifest = network.manifest
    return ModelMetadata(
        name=manifest.name,
        versions=versions,
        platform="onnxruntime_onnx",
        inputs=[TensorMetadata.model_validate(spec) for spec in manifest.inputs],
        outputs=[TensorMetadata.model_validate(spec) for spec in manifest.outputs],
    )
