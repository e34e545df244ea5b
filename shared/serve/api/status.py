"""The state of the server: counters for Prometheus, and the state of every predictor."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from shared.serve.api.deps import MetricsDep, ServicesDep
from shared.serve.api.schemas import AppHealth, ArtifactVersion, Health, WorkerHealth
from shared.serve.metrics import CONTENT_TYPE
from shared.serve.oip.networks import Networks
from shared.serve.service import Service

router = APIRouter(tags=["Server"])


@router.get("/metrics", operation_id="metrics", response_class=Response)
async def metrics(request: Request, counters: MetricsDep, services: ServicesDep) -> Response:
    """Counters and gauges in Prometheus' text format, under Triton's names."""
    networks: Networks = request.app.state.networks
    pools = [(name, pool) for name, service in services.items() for pool in service.pools()]
    pools += [(one.manifest.name, one.model.value) for one in networks.all() if one.model.value is not None]
    held: dict[str, int] = {}
    for name, pool in pools:
        held[name] = held.get(name, 0) + sum(state["memory_bytes"] or 0 for state in pool.states())
    counters.measured_memory(held)
    return Response(counters.exposition(), media_type=CONTENT_TYPE)


@router.get("/healthz", operation_id="healthz")
async def health(request: Request, services: ServicesDep) -> Health:
    """Whether the server runs, and the state of each predictor."""
    apps = {name: await _state(service) for name, service in services.items()}
    networks: Networks = request.app.state.networks
    loaded = {
        f"{network.manifest.name} version {network.version}": [WorkerHealth.model_validate(w) for w in pool.states()]
        for network in networks.all()
        if (pool := network.model.value) is not None
    }
    return Health(status="ok", version=request.app.version, apps=apps, networks=loaded)


async def _state(service: Service) -> AppHealth:
    model, failure = service.model.value, service.model.failure
    loaded = model is not None
    workers = [] if model is None else [WorkerHealth.model_validate(state) for state in model.workers.states()]
    if model is not None and not model.workers.usable:
        failure = failure or next((worker.failure for worker in workers if worker.failure), None)
    # Only a predictor that is loaded knows its manifests without reading files.
    manifests = service.manifests if loaded else await run_in_threadpool(lambda: service.manifests)
    return AppHealth(
        predictor="failed" if failure else "loaded" if loaded else "not loaded",
        failure=failure,
        artifacts=[ArtifactVersion.of(manifest) for manifest in manifests],
        workers=workers,
    )
