"""Triton's extensions of the protocol: a model's configuration and statistics, and the repository.

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
from shared.serve.oip.dependencies import NetworksDep, NewestDep, VersionDep
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

_UNKNOWN: dict[int | str, dict[str, Any]] = {404: {"model": InferenceError, "description": "There is no such model"}}
_OF_ALL: dict[int | str, dict[str, Any]] = {
    403: {"model": InferenceError, "description": "The key is of a group, and the counters are of all"}
}
_CHANGE: dict[int | str, dict[str, Any]] = {
    **_UNKNOWN,
    400: {"model": InferenceError, "description": "A parameter that is not taken"},
}
_UNUSABLE: dict[int | str, dict[str, Any]] = {
    422: {"model": InferenceError, "description": "The request cannot be read"},
    503: {"model": InferenceError, "description": "The model cannot be loaded"},
}
# The protocol's clients send JSON without saying so.
router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], responses=_UNUSABLE, strict_content_type=False)


@router.get("/models/stats", operation_id="oip_stats", responses=_OF_ALL, dependencies=[NoGroup])
async def all_statistics(networks: NetworksDep) -> Statistics:
    """What every model counted since the server started."""
    return statistics_of(networks, None, None)


@router.get("/models/{name}/config", operation_id="oip_config", responses=_UNKNOWN, response_model_exclude_none=True)
async def config(network: NewestDep, networks: NetworksDep) -> ModelConfig:
    """A model's configuration, as in Triton's config.pbtxt."""
    return describe_config(network, networks)


@router.get(
    "/models/{name}/versions/{version}/config",
    operation_id="oip_config_version",
    responses=_UNKNOWN,
    response_model_exclude_none=True,
)
async def config_version(network: VersionDep, networks: NetworksDep) -> ModelConfig:
    """The configuration of one version of a model."""
    return describe_config(network, networks)


@router.get(
    "/models/{name}/stats", operation_id="oip_model_stats", responses=_UNKNOWN | _OF_ALL, dependencies=[NoGroup]
)
async def statistics(name: str, networks: NetworksDep) -> Statistics:
    """What all versions of a model counted since the server started; durations are in nanoseconds."""
    return statistics_of(networks, name, None)


@router.get(
    "/models/{name}/versions/{version}/stats",
    operation_id="oip_model_stats_version",
    responses=_UNKNOWN | _OF_ALL,
    dependencies=[NoGroup],
)
async def statistics_version(network: VersionDep) -> Statistics:
    """What one version of a model counted."""
    return Statistics(model_stats=[_statistics(network)])


@router.post("/repository/index", operation_id="oip_repository_index")
async def index(networks: NetworksDep, wanted: IndexRequest | None = None) -> list[IndexEntry]:
    """Every version of every model, and whether it is loaded; with `ready` only those that are."""
    return index_of(networks, ready=wanted is not None and wanted.ready)


@router.post("/repository/models/{name}/load", operation_id="oip_load", responses=_CHANGE, dependencies=[OperatorOnly])
async def load(name: str, networks: NetworksDep, given: RepositoryParameters | None = None) -> dict[str, Any]:
    """Reads the registry again for the model's versions, and loads those that are not loaded."""
    (given or RepositoryParameters()).check_load()
    await networks.load(name)
    return {}


@router.post(
    "/repository/models/{name}/unload", operation_id="oip_unload", responses=_CHANGE, dependencies=[OperatorOnly]
)
async def unload(name: str, networks: NetworksDep, given: RepositoryParameters | None = None) -> dict[str, Any]:
    """Ends the model's workers once they have answered what they were given; it answers again once it is loaded."""
    (given or RepositoryParameters()).check_unload()
    await networks.unload(name)
    return {}


def statistics_of(networks: Networks, name: str | None, version: str | None) -> Statistics:
    """What all models counted, or all versions of one, or one version. Refuses unknown ones with 404."""
    if name is None:
        found = networks.all()
    else:
        versions = networks.versions(name) if version is None else [version]
        found = [networks.find(name, one) for one in versions]
    return Statistics(model_stats=[_statistics(network) for network in found])


def index_of(networks: Networks, *, ready: bool) -> list[IndexEntry]:
    """Every version of every model; with ``ready`` only those that are loaded."""
    entries = [_entry(network) for network in networks.all()]
    return [entry for entry in entries if entry.state == "READY" or not ready]


def describe_config(network: NetworkModel, networks: Networks) -> ModelConfig:
    """A model's configuration. One without a batch axis is not batched, as Triton says with ``max_batch_size`` 0."""
    manifest = network.manifest
    batched = all(spec.shape[:1] == (-1,) for spec in (*manifest.inputs, *manifest.outputs))

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
    """Triton wants at least one dimension besides the batch."""
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
    """Triton's instance groups: how many workers of a model there are on each device."""
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
