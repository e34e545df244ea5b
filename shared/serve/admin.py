"""The operator's page: models and versions, queues, latencies, errors, jobs and disk. It is read-only."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse

from shared.serve.api.deps import ServicesDep, get_operator
from shared.serve.metrics import Metrics, ModelMetrics
from shared.serve.oip.networks import Networks
from shared.serve.pages import Pages
from shared.serve.runtime.live_versions import LiveVersions
from shared.serve.runtime.pool import WorkerPool
from shared.serve.service import Service
from shared.store.promotions import VersionStage

QUANTILES = (0.5, 0.95, 0.99)
_RECENT_JOBS = 5


def admin_router(pages: Pages) -> APIRouter:
    """The route of the page, for clients that ``get_operator`` accepts."""
    router = APIRouter(include_in_schema=False, dependencies=[Depends(get_operator)])

    @router.api_route("/admin", methods=["GET", "HEAD"], response_class=HTMLResponse)
    async def admin(request: Request, services: ServicesDep) -> HTMLResponse:
        networks: Networks = request.app.state.networks
        metrics: Metrics = request.app.state.metrics
        live: LiveVersions = request.app.state.live_versions
        stages = {name: await live.stages(name) for name in live.models()}
        kept = await run_in_threadpool(lambda: [_stored_data(service) for service in services.values()])
        return pages.render(
            "admin.html",
            here="admin",
            version=request.app.version,
            models=_model_rows(services, networks, stages),
            quantiles=QUANTILES,
            answers=metrics.answers_by_status(),
            kept=kept,
            groups=await run_in_threadpool(
                lambda: [row for service in services.values() for row in _group_rows(service)]
            ),
            disk=await run_in_threadpool(_disk_usage, services),
            fault=await run_in_threadpool(request.app.state.store.find_fault),
        )

    return router


def _model_rows(
    services: Mapping[str, Service], networks: Networks, stages: Mapping[str, Mapping[int, VersionStage]]
) -> list[dict[str, Any]]:
    """A row for each application and each network: its title, the state of its workers, and its metrics."""
    rows = []
    for name, service in services.items():
        model = service.model.value
        versions = (
            [] if model is None else [f"{artifact.name} version {artifact.version}" for artifact in model.manifests]
        )
        workers, metrics = (None, None) if model is None else (model.workers, model.metrics)
        rows.append(_model_row(service.app.title, f"/{name}", versions, service.model.failure, workers, metrics))
        if (jobs := service.job_model.value) is not None:
            title = f"{service.app.title} (jobs)"
            versions = [f"{manifest.name} version {manifest.version}" for manifest in jobs.manifests]
            rows.append(_model_row(title, f"/{name}", versions, service.job_model.failure, jobs.workers, jobs.metrics))
    for network in networks.all():
        manifest, pool = network.manifest, network.model.value
        address = f"/v2/models/{manifest.name}/versions/{network.version}"
        metrics = network.metrics if pool is not None else None
        title = f"{manifest.name} (network)"
        stage = stages.get(manifest.name, {}).get(manifest.version, "candidate")
        version = f"version {network.version} ({stage})"
        failure = "unloaded" if network.model.unloaded is not None else network.model.failure
        rows.append(_model_row(title, address, [version], failure, pool, metrics))
    return rows


def _model_row(
    title: str,
    address: str,
    versions: list[str],
    failure: str | None,
    workers: WorkerPool | None,
    metrics: ModelMetrics | None,
) -> dict[str, Any]:
    states = [] if workers is None else workers.states()
    totals = {"success": 0, "fail": 0} if metrics is None else metrics.totals()
    return {
        "title": title,
        "address": address,
        "versions": versions,
        "failure": failure or next((worker["failure"] for worker in states if worker["failure"]), None),
        "workers": [worker["state"] for worker in states],
        "memory_mb": sum(worker["memory_bytes"] or 0 for worker in states) / 1e6,
        "restarts": sum(worker["restarts"] for worker in states),
        "waiting": 0 if metrics is None else metrics.waiting(),
        "answered": totals["success"],
        "failed": totals["fail"],
        "seconds": [None if metrics is None else metrics.latency_quantile_s(quantile) for quantile in QUANTILES],
    }


def _stored_data(service: Service) -> dict[str, Any]:
    """The stored data of an application: number of cases, megabytes, number of jobs by state, and the newest jobs."""
    name = service.app.name
    return {
        "app": service.app,
        "cases": service.store.number(name),
        "megabytes": service.store.used_bytes(name) / 1e6,
        "states": service.jobs.states(name),
        "jobs": service.jobs.recent(name, _RECENT_JOBS),
    }


def _group_rows(service: Service) -> list[dict[str, Any]]:
    """The cases, megabytes and waiting jobs of each group of keys in an application; empty if there are no groups."""
    kept = service.store.kept_by_group(service.app.name)
    waiting = service.jobs.waiting_by_group(service.app.name)
    if not any({*kept, *waiting}):
        return []
    rows = []
    for group in sorted({*kept, *waiting}, key=lambda name: name or ""):
        cases, size = kept.get(group, (0, 0))
        row = {"app": service.app, "group": group, "cases": cases, "megabytes": size / 1e6}
        rows.append(row | {"waiting": waiting.get(group, 0)})
    return rows


def _disk_usage(services: Mapping[str, Service]) -> dict[str, Any]:
    store = next((service.store for service in services.values()), None)
    if store is None:
        return {}
    usage = shutil.disk_usage(store.folder)
    return {"folder": str(store.folder), "free_gb": usage.free / 1e9, "total_gb": usage.total / 1e9}
