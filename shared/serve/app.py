"""Builds the ASGI application: finds the installed applications, and sets up their queues and routes."""

from __future__ import annotations

import asyncio
import logging
import mimetypes
import re
import shutil
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.params import Form
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from starlette.routing import compile_path

from shared.app import App, installed
from shared.deploy.registry import Registry
from shared.errors import InvalidInputError
from shared.secure.tls import read_certificate
from shared.serve.admin import admin_router
from shared.serve.api import app_routes, domain_operation_ids, status
from shared.serve.api import models as models_api
from shared.serve.api.schemas import INVALID_INPUT_RESPONSE, PredictForm
from shared.serve.errors import answer_errors
from shared.serve.known_keys import KnownKeys
from shared.serve.metrics import Metrics
from shared.serve.middleware import add_middleware
from shared.serve.middleware.draining import Drain
from shared.serve.middleware.per_client import ClientLimit
from shared.serve.oip import repository
from shared.serve.oip import routes as oip
from shared.serve.oip.infer import add_infer_routes
from shared.serve.oip.networks import Networks
from shared.serve.openapi import DescribedAPI
from shared.serve.pages import WEB, Pages
from shared.serve.runtime.live_versions import LiveState, LiveVersions
from shared.serve.runtime.loading import LoadOnce
from shared.serve.runtime.readiness import Readiness
from shared.serve.runtime.webhook import webhook_from_settings
from shared.serve.runtime.worker_folder import remove_leftover_worker_folders
from shared.serve.service import Service
from shared.serve.settings import Settings
from shared.serve.upload_folders import INCOMING, remove_leftover_uploads
from shared.serve.worker.schemas import InferenceRequest
from shared.store.cases import CaseStore
from shared.store.database import empty_journal
from shared.store.jobs import JobStore, remove_abandoned_files
from shared.store.keys import Keys
from shared.store.promotions import Promotions

log = logging.getLogger("trivium.serve")
_EXPIRE_INTERVAL_S = 3600.0
_EMPTY_JOURNAL_INTERVAL_S = 5.0
_MAX_EVENT_STREAMS = 1000
"""Each open event stream reads its job from the database every two seconds."""
_DESCRIPTION = """\
Errors are `{"detail": "..."}`, and under `/v2` `{"error": "..."}`. Times are UTC in ISO 8601; a review's `replaces` is
compared with `reviewed` as text, so send it as it was received."""
_TAGS = [
    {"name": "Open Inference Protocol", "description": "The dense networks: tensors in, tensors out"},
    {"name": "Server", "description": "Health, metrics, and the versions of models"},
]
_RESERVED_PATHS = ("admin", "api", "docs", "healthz", "metrics", "openapi.json", "static", "v2")
_MEDIA_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm"}


def create_app(
    settings: Settings, apps: Mapping[str, App] | None = None, hosts: Collection[str] | None = None
) -> FastAPI:
    """The server for the installed applications, or for ``apps`` if given.

    It accepts the host names in ``settings.hosts``, or else those in ``hosts``, which the caller derives from the
    address that the server listens on; None accepts any. Raises ``InvalidInputError`` for settings that it cannot use.
    """
    apps_by_name = dict(installed() if apps is None else apps)
    if settings.registry is not None and not settings.registry.is_dir():
        raise InvalidInputError(
            f"the registry {settings.registry} is not a folder; `trivium export RUN --registry DIR` creates one"
        )
    if (first_segment := settings.root.split("/")[1:2]) and first_segment[0] in {*apps_by_name, *_RESERVED_PATHS}:
        raise InvalidInputError(
            f"/{first_segment[0]} is one of the server's own paths; set TRIVIUM_ROOT_PATH to a different path"
        )
    webhook = webhook_from_settings(settings)
    metrics = Metrics()
    store = CaseStore(settings.store, settings.store_url)
    live = LiveState(Promotions(store.engine))
    registry = _open_registry(settings, apps_by_name.values(), live)
    remove_leftover_uploads(settings.store, exclusive=not store.shared)
    remove_leftover_worker_folders()
    remove_abandoned_files(store.engine, settings.store, exclusive=not store.shared)
    services = {name: Service(app, registry, settings, store, metrics) for name, app in apps_by_name.items()}
    networks = Networks(registry, settings, metrics, live.serving)
    model_users = {model: service for service in services.values() for model in service.app.models}
    live_versions = LiveVersions(live, registry, model_users, networks)
    models: list[LoadOnce[Any]] = [service.model for service in services.values()]
    models += [network.model for network in networks.all()]
    readiness = Readiness(models, settings.warm)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await live_versions.start()
        readiness.start()
        for service in services.values():
            service.runner.start()
        background_tasks = [
            asyncio.create_task(_expire_cases(services.values(), settings)),
            asyncio.create_task(_empty_journal(store.engine)),
        ]
        if webhook is not None:
            jobs = JobStore(store.engine, store.folder, server=INCOMING)
            background_tasks.append(asyncio.create_task(webhook.run(jobs)))
        if store.shared:
            background_tasks.append(asyncio.create_task(live_versions.follow()))
        async with _grpc_server(server, settings):
            yield
        for task in background_tasks:
            task.cancel()
        readiness.stop()
        for service in services.values():
            await service.runner.stop()
        # All workers are ended before any is waited for: on a busy machine each takes seconds to end.
        for pool in (*networks.pools(), *(pool for service in services.values() for pool in service.pools())):
            pool.stop_workers()
        for service in services.values():
            service.close()
        networks.close()
        shutil.rmtree(settings.store / INCOMING, ignore_errors=True)
        store.close()

    server = DescribedAPI(
        bodies=[PredictForm, InferenceRequest],
        apps={name: service.app.schemas() for name, service in services.items() if service.app.schemas is not None},
        requires_key=settings.require_key,
        limits=_body_limits(settings),
        title="Trivium",
        version=_package_version(),
        summary="Lung nodules in chest CT, 3D object detection, anomalies in financial time series.",
        lifespan=lifespan,
        license_info={"name": "Apache License 2.0", "identifier": "Apache-2.0"},
        description=_DESCRIPTION,
        openapi_tags=[{"name": name, "description": app.title} for name, app in apps_by_name.items()] + _TAGS,
        servers=[{"url": settings.root}] if settings.root else None,
        docs_url=None,
        redoc_url=None,
    )
    # The routes' dependencies read these.
    server.state.services = services
    server.state.networks = networks
    server.state.live_versions = live_versions
    server.state.readiness = readiness
    server.state.metrics = metrics
    server.state.store = store
    server.state.keys = KnownKeys(Keys(store.engine)) if settings.require_key else None
    server.state.drain = Drain()
    server.state.client_limit = ClientLimit(settings.max_per_client)
    server.state.event_streams = ClientLimit(
        settings.max_per_client,
        max_total=_MAX_EVENT_STREAMS,
        max_of_group=_MAX_EVENT_STREAMS * 3 // 4 if settings.require_key else None,
    )
    json_routes: list[re.Pattern[str]] = []
    add_middleware(
        server,
        hosts=settings.host_names or hosts,
        drain=server.state.drain,
        checks=_admission_checks(services, networks),
        deadline_s=settings.deadline_s,
        json_routes=json_routes,
        max_json_bytes=settings.max_json_bytes,
        client_limit=server.state.client_limit,
        metrics=metrics,
        keys=server.state.keys,
        root=settings.root,
    )
    pages = Pages(services, settings)
    answer_errors(server, pages)
    add_infer_routes(server)
    for service in services.values():
        json_routes += _add_routes(server, service)
    server.include_router(repository.router)  # before the routes of a model, which would take "stats" for a name
    server.include_router(oip.router)
    server.include_router(pages.router())
    server.include_router(admin_router(pages))
    server.include_router(status.router)
    server.include_router(models_api.router)
    for ending, media_type in _MEDIA_TYPES.items():
        mimetypes.add_type(media_type, ending)
    server.mount("/static/shared", StaticFiles(directory=WEB / "static"))
    return server


def _body_limits(settings: Settings) -> dict[str, str]:
    """Descriptions of the limits on a request body, by the last segment of the path."""
    form = f"At most {settings.max_upload_bytes:,} bytes and {settings.max_files:,} files"
    tensors = f"At most {settings.max_tensor_bytes:,} bytes, of which at most {settings.max_json_bytes:,} are JSON"
    answered = f"answered within {settings.deadline_s:g} seconds of the end of the upload"
    return {
        "predict": f"{form}; {answered}",
        "jobs": f"{form}; computed for at most {settings.job_deadline_s:g} seconds",
        "infer": f"{tensors}; {answered}",
    }


@asynccontextmanager
async def _grpc_server(server: FastAPI, settings: Settings) -> AsyncIterator[None]:
    """Serves gRPC while the block lasts, if the settings ask for it; ``server.state.grpc_port`` is then its port."""
    if settings.grpc_port is None:
        yield
        return
    try:
        from shared.serve.oip.grpc_service import GrpcService, stop
    except ModuleNotFoundError as error:
        raise InvalidInputError(f"gRPC needs the package {error.name}; install trivium[grpc]") from error
    certificate = read_certificate(settings.tls_cert, settings.tls_key)
    grpc, server.state.grpc_port = await GrpcService(server.state, server.version).start(
        settings.host, settings.grpc_port, certificate
    )
    log.info("gRPC listens on port %d", server.state.grpc_port)
    try:
        yield
    finally:
        await stop(grpc)


async def _expire_cases(services: Collection[Service], settings: Settings) -> None:
    """Deletes the cases and jobs that exceed the retention limits, at once and then every hour."""
    while any(limit is not None for limit in (settings.keep_days, settings.keep_cases, settings.keep_bytes)):
        for service in services:
            await run_in_threadpool(service.expire)
        await asyncio.sleep(_EXPIRE_INTERVAL_S)


async def _empty_journal(engine: Engine) -> None:
    """Empties the database's journal every few seconds, so that deleted data, such as file names of jobs, leaves it."""
    while True:
        try:
            await run_in_threadpool(empty_journal, engine)
        except SQLAlchemyError as error:
            log.warning("the journal of the store's database cannot be emptied: %s", error)
        await asyncio.sleep(_EMPTY_JOURNAL_INTERVAL_S)


def _admission_checks(services: Mapping[str, Service], networks: Networks) -> dict[str, Callable[[str | None], None]]:
    """By the path of a prediction: a function that raises ``Busy`` if a request of a group would not be admitted."""

    def check_live(group: str | None, name: str) -> None:
        networks.find(name, None).check_room(group)

    checks: dict[str, Callable[[str | None], None]]
    checks = {f"/api/{name}/predict": service.check_room for name, service in services.items()}
    for name in networks.names():
        checks[f"/v2/models/{name}/infer"] = partial(check_live, name=name)
        for number in networks.versions(name):
            checks[f"/v2/models/{name}/versions/{number}/infer"] = networks.find(name, number).check_room
    return checks


def _add_routes(server: FastAPI, service: Service) -> list[re.Pattern[str]]:
    """Adds the routes that every application has, those of its domain, and the static files of its pages.

    Returns patterns for the paths of the domain routes whose JSON body FastAPI reads into memory as a whole.
    """
    json_paths = []
    app = service.app
    server.include_router(app_routes(service))
    if app.router is not None:
        try:
            domain = app.router(service)
        except Exception:
            log.exception("the routes of %s are left out", app.name)
        else:
            prefix = f"/api/{app.name}"
            names = domain_operation_ids(app.name, domain)
            server.include_router(
                domain,
                prefix=prefix,
                tags=[app.name],
                responses=INVALID_INPUT_RESPONSE,
                generate_unique_id_function=names,
            )
            for route in domain.routes:
                field = route.body_field if isinstance(route, APIRoute) else None
                if isinstance(route, APIRoute) and field is not None and not isinstance(field.field_info, Form):
                    json_paths.append(compile_path(prefix + route.path)[0])
    if app.pages.is_dir():
        server.mount(f"/static/{app.name}", StaticFiles(directory=app.pages))
    return json_paths


def _open_registry(settings: Settings, apps: Iterable[App], live: LiveState) -> Registry:
    own_registry = [] if settings.registry is None else [settings.registry]
    return Registry(*own_registry, *(app.weights for app in apps), live=live.loading, retired=live.retired)


def _package_version() -> str:
    try:
        return version("trivium")
    except PackageNotFoundError:
        return "0"
