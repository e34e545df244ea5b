"""Routes for the state of the server: metrics for Prometheus, and the health of every predictor."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from shared.serve.api.deps import ServicesDep
from shared.serve.api.schemas import Alive, AppHealth, ArtifactVersion, Health, Problem, WorkerHealth
from shared.serve.known_keys import OperatorOnly
from shared.serve.metrics import CONTENT_TYPE, Metrics
from shared.serve.oip.networks import Networks
from shared.serve.openapi import content
from shared.serve.service import Service
from shared.store.cases import CaseStore
from shared.store.database import is_database_gone

router = APIRouter(tags=["Server"])


@router.head("/metrics", include_in_schema=False, dependencies=[OperatorOnly])
@router.get(
    "/metrics",
    operation_id="metrics",
    dependencies=[OperatorOnly],
    response_class=Response,
    responses={
        200: content("text/plain", {"type": "string"}),
        403: {"model": Problem, "description": "The key is not an operator's"},
    },
)
async def metrics(request: Request, services: ServicesDep) -> Response:
    """Counters and gauges in Prometheus' text format, with Triton's names."""
    networks: Networks = request.app.state.networks
    counters: Metrics = request.app.state.metrics
    pools = [(name, pool) for name, service in services.items() for pool in service.pools()]
    pools += [
        (network.manifest.name, network.model.value) for network in networks.all() if network.model.value is not None
    ]
    jobs, free_bytes = await run_in_threadpool(_jobs_and_free_bytes, request.app.state.store, services)
    memory, restarts = Counter[str](), Counter[str]()
    for name, pool in pools:
        states = pool.states()
        memory[name] += sum(state["memory_bytes"] or 0 for state in states)
        restarts[name] += sum(state["restarts"] for state in states)
    counters.set_gauges(memory, restarts, jobs, free_bytes)
    return Response(counters.exposition(), media_type=CONTENT_TYPE)


def _jobs_and_free_bytes(store: CaseStore, services: Mapping[str, Service]) -> tuple[dict[str, dict[str, int]], int]:
    """The number of jobs by application and state, empty while the database is unreachable; and the free disk bytes."""
    free_bytes = shutil.disk_usage(store.folder).free
    try:
        return {name: service.jobs.unanswered(name) for name, service in services.items()}, free_bytes
    except Exception as error:
        if not is_database_gone(error):
            raise
        return {}, free_bytes


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", operation_id="healthz")
async def health(request: Request, services: ServicesDep) -> Health | Alive:
    """Whether the server runs, and the state of each predictor; without a required key, only whether it runs."""
    if request.app.state.keys is not None and not hasattr(request.state, "key"):
        return Alive(status="ok")
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
    # Without a loaded predictor, its manifests are read from files.
    manifests = service.manifests if loaded else await run_in_threadpool(lambda: service.manifests)
    return AppHealth(
        predictor="failed" if failure else "loaded" if loaded else "not loaded",
        failure=failure,
        artifacts=[ArtifactVersion.model_validate(manifest) for manifest in manifests],
        workers=workers,
    )
