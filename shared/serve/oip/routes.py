"""The routes of the Open Inference Protocol, for the dense network of every artifact."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from shared.serve.middleware.draining import Drain
from shared.serve.oip.dependencies import LiveDep, NetworksDep, VersionDep
from shared.serve.oip.networks import NetworkModel
from shared.serve.oip.schemas import (
    InferenceError,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
    TensorMetadata,
)
from shared.serve.runtime.readiness import Readiness
from shared.store.cases import CaseStore

EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")
_NOT_FOUND: dict[int | str, dict[str, Any]] = {
    404: {"model": InferenceError, "description": "There is no such model, or it was unloaded"}
}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    422: {"model": InferenceError, "description": "The request cannot be read"}
}
router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], responses=_PROBLEMS)


async def server_readiness(state: Any) -> ServerReady:
    """Whether every model can answer, cases can be kept, and the server is not shutting down."""
    readiness: Readiness = state.readiness
    drain: Drain = state.drain
    store: CaseStore = state.store
    if drain.is_draining:
        return ServerReady(ready=False, reason="the server is being shut down")
    fault = await run_in_threadpool(store.find_fault) or await readiness.fault()
    return ServerReady(ready=fault is None, reason=fault)


@router.get("", operation_id="oip_server")
async def server(request: Request, networks: NetworksDep) -> ServerMetadata:
    """The server, the protocol extensions that it supports and, beyond the protocol, its models."""
    version = request.app.version
    return ServerMetadata(name="trivium", version=version, extensions=list(EXTENSIONS), models=networks.names())


@router.head("/health/live", include_in_schema=False)
@router.get("/health/live", operation_id="oip_live")
async def live() -> ServerLive:
    """Whether the server runs."""
    return ServerLive(live=True)


@router.head("/health/ready", include_in_schema=False)
@router.get(
    "/health/ready", operation_id="oip_ready", response_model=ServerReady, responses={503: {"model": ServerReady}}
)
async def server_ready(request: Request) -> JSONResponse:
    """Answers 200 if every model can answer and cases can be kept, else 503."""
    state = await server_readiness(request.app.state)
    return JSONResponse(state.model_dump(exclude_none=True), 200 if state.ready else 503)


@router.get("/models/{name}", operation_id="oip_model", responses=_NOT_FOUND)
async def model(networks: NetworksDep, network: LiveDep) -> ModelMetadata:
    """A model's inputs and outputs; -1 in a shape stands for any size."""
    return describe(network, networks.versions(network.manifest.name))


@router.get("/models/{name}/versions/{version}", operation_id="oip_model_version", responses=_NOT_FOUND)
async def model_version(network: VersionDep) -> ModelMetadata:
    """The inputs and outputs of one version of a model."""
    return describe(network, [network.version])


@router.get("/models/{name}/ready", operation_id="oip_model_ready", responses=_NOT_FOUND)
async def model_ready(network: LiveDep) -> ModelReady:
    """Whether the model can answer; loads it if necessary."""
    return await _ready(network)


@router.get("/models/{name}/versions/{version}/ready", operation_id="oip_model_version_ready", responses=_NOT_FOUND)
async def model_version_ready(network: VersionDep) -> ModelReady:
    """Whether one version of a model can answer; loads it if necessary."""
    return await _ready(network)


async def _ready(network: NetworkModel) -> ModelReady:
    await network.model.get()
    return ModelReady(name=network.manifest.name, ready=True)


def describe(network: NetworkModel, versions: list[str]) -> ModelMetadata:
    """The metadata of a model: its inputs, outputs and the given versions."""
    manifest = network.manifest
    return ModelMetadata(
        name=manifest.name,
        versions=versions,
        platform="onnxruntime_onnx",
        inputs=[TensorMetadata.model_validate(spec) for spec in manifest.inputs],
        outputs=[TensorMetadata.model_validate(spec) for spec in manifest.outputs],
    )
