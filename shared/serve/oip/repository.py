"""Triton's extensions of the protocol: model configuration, statistics, and the model repository.

https://github.com/triton-inference-server/server/tree/main/docs/protocol (model_configuration, statistics,
model_repository).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from fastapi import APIRouter

from shared.deploy.artifact import TensorSpec
from shared.serve.known_keys import NoGroup, OperatorOnly
from shared.serve.oip.dependencies import LiveDep, NetworksDep, VersionDep
from shared.serve.oip.networks import NetworkModel, Networks
from shared.serve.oip.schemas import (
    Duration,
    IndexEntry,
    IndexRequest,
    InferenceError,
    InferenceStatistics,
    ModelConfig,
    ModelStatistics,
    RepositoryParameters,
    Statistics,
)
from shared.serve.settings import Settings

_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": InferenceError, "description": "There is no such model"}}
_FORBIDDEN: dict[int | str, dict[str, Any]] = {
    403: {"model": InferenceError, "description": "The key has a group, but the counters cover all groups"}
}
_CHANGE_PROBLEMS: dict[int | str, dict[str, Any]] = {
    **_NOT_FOUND,
    400: {"model": InferenceError, "description": "A parameter is not supported"},
}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    422: {"model": InferenceError, "description": "The request cannot be read"},
    503: {"model": InferenceError, "description": "The model cannot be loaded"},
}
# Clients of the protocol send JSON without its content type.
router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], responses=_PROBLEMS, strict_content_type=False)


@router.get("/models/stats", operation_id="oip_stats", responses=_FORBIDDEN, dependencies=[NoGroup])
async def all_statistics(networks: NetworksDep) -> Statistics:
    """The counters of every model since the server started."""
    return statistics_of(networks, None, None)


@router.get("/models/{name}/config", operation_id="oip_config", responses=_NOT_FOUND, response_model_exclude_none=True)
async def config(network: LiveDep, networks: NetworksDep) -> ModelConfig:
    """A model's configuration, as in Triton's config.pbtxt."""
    return describe_config(network, networks)


@router.get(
    "/models/{name}/versions/{version}/config",
    operation_id="oip_config_version",
    responses=_NOT_FOUND,
    response_model_exclude_none=True,
)
async def config_version(network: VersionDep, networks: NetworksDep) -> ModelConfig:
    """The configuration of one version of a model."""
    return describe_config(network, networks)


@router.get(
    "/models/{name}/stats", operation_id="oip_model_stats", responses=_NOT_FOUND | _FORBIDDEN, dependencies=[NoGroup]
)
async def statistics(name: str, networks: NetworksDep) -> Statistics:
    """The counters of all versions of a model since the server started; durations are in nanoseconds."""
    return statistics_of(networks, name, None)


@router.get(
    "/models/{name}/versions/{version}/stats",
    operation_id="oip_model_stats_version",
    responses=_NOT_FOUND | _FORBIDDEN,
    dependencies=[NoGroup],
)
async def statistics_version(network: VersionDep) -> Statistics:
    """The counters of one version of a model."""
    return Statistics(model_stats=[_statistics(network)])


@router.post("/repository/index", operation_id="oip_repository_index")
async def index(networks: NetworksDep, body: IndexRequest | None = None) -> list[IndexEntry]:
    """Every version of every model, and whether it is loaded; with `ready`, only the loaded ones."""
    return index_of(networks, ready=body is not None and body.ready)


@router.post(
    "/repository/models/{name}/load", operation_id="oip_load", responses=_CHANGE_PROBLEMS, dependencies=[OperatorOnly]
)
async def load(name: str, networks: NetworksDep, body: RepositoryParameters | None = None) -> dict[str, Any]:
    """Reads the model's versions from the registry again, and loads those that are not loaded."""
    (body or RepositoryParameters()).check_load()
    await networks.load(name)
    return {}


@router.post(
    "/repository/models/{name}/unload",
    operation_id="oip_unload",
    responses=_CHANGE_PROBLEMS,
    dependencies=[OperatorOnly],
)
async def unload(name: str, networks: NetworksDep, body: RepositoryParameters | None = None) -> dict[str, Any]:
    """Ends the model's workers after they have answered the requests they have; loading the model starts new ones."""
    (body or RepositoryParameters()).check_unload()
    await networks.unload(name)
    return {}


def statistics_of(networks: Networks, name: str | None, version: str | None) -> Statistics:
    """The counters of all models, of all versions of one model, or of one version. Refuses (404) unknown ones."""
    if name is None:
        selected = networks.all()
    else:
        versions = networks.versions(name) if version is None else [version]
        selected = [networks.find(name, known_version) for known_version in versions]
    return Statistics(model_stats=[_statistics(network) for network in selected])


def index_of(networks: Networks, *, ready: bool) -> list[IndexEntry]:
    """Every version of every model; with ``ready``, only the loaded ones."""
    entries = [_entry(network) for network in networks.all()]
    return [entry for entry in entries if entry.state == "READY" or not ready]


def describe_config(network: NetworkModel, networks: Networks) -> ModelConfig:
    """A model's configuration. A model without a batch axis has ``max_batch_size`` 0, as in Triton."""
    manifest, batched = network.manifest, network.manifest.batched

    def tensors(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
        return [_tensor(spec, spec.shape[1:] if batched else spec.shape) for spec in specs]

    return ModelConfig(
        name=manifest.name,
        platform="onnxruntime_onnx",
        backend="onnxruntime",
        version_policy={"all": {}},
        max_batch_size=networks.settings.max_batch if batched else 0,
        input=tensors(manifest.inputs),
        output=tensors(manifest.outputs),
        instance_group=_instance_groups(manifest.name, networks.settings),
        dynamic_batching={"max_queue_delay_microseconds": 0} if batched else None,
    )


def _tensor(spec: TensorSpec, dims: Sequence[int]) -> dict[str, Any]:
    """A tensor of the configuration. Triton requires at least one dimension besides the batch."""
    described = {"name": spec.name, "data_type": f"TYPE_{spec.datatype}", "dims": list(dims) or [1]}
    return described if dims else {**described, "reshape": {"shape": []}}


def _statistics(network: NetworkModel) -> ModelStatistics:
    totals = network.metrics.totals()

    def duration(name: str, count: int = totals["success"]) -> Duration:
        return Duration(count=count, ns=totals.get(f"{name}_ns", 0))

    return ModelStatistics(
        name=network.manifest.name,
        version=network.version,
        inference_count=totals["inferences"],
        execution_count=totals["executions"],
        inference_stats=InferenceStatistics(
            success=duration("request"),
            fail=duration("fail", totals["fail"]),
            queue=duration("queue"),
            compute_input=duration("input"),
            compute_infer=duration("infer"),
            compute_output=duration("output"),
        ),
        batch_stats=[],
    )


def _entry(network: NetworkModel) -> IndexEntry:
    model = network.model
    if model.usable:
        return IndexEntry(name=network.manifest.name, version=network.version, state="READY", reason="")
    state: Literal["LOADING", "UNAVAILABLE"] = "LOADING" if model.value is not None else "UNAVAILABLE"
    return IndexEntry(
        name=network.manifest.name,
        version=network.version,
        state=state,
        reason="unloaded" if model.unloaded is not None else model.failure or "not loaded",
    )


def _instance_groups(name: str, settings: Settings) -> list[dict[str, Any]]:
    """Triton's instance groups: the number of workers of a model on each device."""
    groups = Counter(settings.worker_devices or [(settings.device, None)])
    return [
        {
            "name": name if len(groups) == 1 else f"{name}_{number}",
            "kind": "KIND_CPU" if device == "cpu" else "KIND_AUTO" if gpu is None else "KIND_GPU",
            "count": count,
        }
        | ({} if gpu is None else {"gpus": [gpu]})
        for number, ((device, gpu), count) in enumerate(groups.items())
    ]
