"""The server as an ASGI application: applications found, put behind their queues, and given routes."""

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
from shared.serve.api.schemas import REFUSED, PredictForm
from shared.serve.errors import answer_errors
from shared.serve.known_keys import KnownKeys
from shared.serve.metrics import Metrics
from shared.serve.middleware import add_middleware
from shared.serve.middleware.draining import Drain
from shared.serve.middleware.per_client import ClientPlaces
from shared.serve.oip import repository
from shared.serve.oip import routes as oip
from shared.serve.oip.infer import add_infer_routes
from shared.serve.oip.networks import Networks
from shared.serve.openapi import DescribedAPI
from shared.serve.pages import WEB, Pages
from shared.serve.runtime.live_versions import Live, LiveVersions
from shared.serve.runtime.loading import LoadOnce
from shared.serve.runtime.readiness import Readiness
from shared.serve.runtime.webhook import webhook_of
from shared.serve.service import INCOMING, Service, remove_uploads_left
from shared.serve.settings import Settings
from shared.serve.worker.schemas import InferenceRequest
from shared.store.cases import CaseStore
from shared.store.database import empty_journal
from shared.store.jobs import JobStore, remove_files_left
from shared.store.keys import Keys
from shared.store.promotions import Promotions

log = logging.getLogger("trivium.serve")
_EXPIRE_EVERY_S = 3600.0
_EMPTY_JOURNAL_EVERY_S = 5.0
_MAX_EVENT_STREAMS = 1000
"""Each reads its job from the database every two seconds."""
_OWN_PATHS = ("admin", "api", "docs", "healthz", "metrics", "openapi.json", "static", "v2")
_MEDIA_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm"}


def create_app(
    settings: Settings, apps: Mapping[str, App] | None = None, hosts: Collection[str] | None = None
) -> FastAPI:
    """The server for the installed applications, or for those given.

    It answers under the names that the settings give, else under ``hosts``, any where that is None: what it is asked
    under follows from where it listens.
    """
    found = dict(installed() if apps is None else apps)
    if settings.registry is not None and not settings.registry.is_dir():
        raise InvalidInputError(
            f"the registry {settings.registry} is not a folder; `trivium export RUN --registry DIR` makes one"
        )
    if (first := settings.root.split("/")[1:2]) and first[0] in {*found, *_OWN_PATHS}:
        raise InvalidInputError(
            f"the server has addresses of its own under /{first[0]}; give it another path in TRIVIUM_ROOT_PATH"
        )
    webhook = webhook_of(settings)
    metrics = Metrics()
    store = CaseStore(settings.store, settings.store_url)
    live = Live(Promotions(store.engine))
    registry = _registry(settings, found.values(), live)
    remove_uploads_left(settings.store, alone=not store.shared)
    remove_files_left(store.engine, settings.store, alone=not store.shared)
    services = {name: Service(app, registry, settings, store, metrics) for name, app in found.items()}
    networks = Networks(registry, settings, metrics, live.serving)
    users = {model: service for service in services.values() for model in service.app.models}
    live_versions = LiveVersions(live, registry, users, networks)
    models: list[LoadOnce[Any]] = [service.model for service in services.values()]
    models += [network.model for network in networks.all()]
    readiness = Readiness(models, settings.warm)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await live_versions.start()
        readiness.start()
        for service in services.values():
            service.runner.start()
        tidying = [
            asyncio.create_task(_expire_cases(services.values(), settings)),
            asyncio.create_task(_empty_journal(store.engine)),
        ]
        if webhook is not None:
            jobs = JobStore(store.engine, store.folder, server=INCOMING)
            tidying.append(asyncio.create_task(webhook.run(jobs)))
        following = asyncio.create_task(live_versions.follow()) if store.shared else None
        async with _grpc(server, settings):
            yield
        for task in tidying:
            task.cancel()
        if following is not None:
            following.cancel()
        readiness.stop()
        for service in services.values():
            await service.runner.stop()
            service.close()
        networks.close()
        shutil.rmtree(settings.store / INCOMING, ignore_errors=True)
        store.close()

    server = DescribedAPI(
        bodies=[PredictForm, InferenceRequest],
        apps={name: service.app.schemas() for name, service in services.items() if service.app.schemas is not None},
        requires_key=settings.require_key,
        limits=_limits(settings),
        title="Trivium",
        version=_version(),
        summary="Lung nodules in chest CT, 3D object detection, anomalies in financial time series.",
        lifespan=lifespan,
        license_info={"name": "Apache License 2.0", "identifier": "Apache-2.0"},
        openapi_tags=[{"name": name, "description": app.title} for name, app in found.items()],
        servers=[{"url": settings.root}] if settings.root else None,
        docs_url=None,
        redoc_url=None,
    )
    # What the routes' dependencies read.
    server.state.services = services
    server.state.networks = networks
    server.state.live_versions = live_versions
    server.state.readiness = readiness
    server.state.metrics = metrics
    server.state.store = store
    server.state.keys = KnownKeys(Keys(store.engine)) if settings.require_key else None
    server.state.drain = Drain()
    server.state.client_places = ClientPlaces(settings.max_per_client)
    server.state.event_streams = ClientPlaces(
        settings.max_per_client,
        most_of_all=_MAX_EVENT_STREAMS,
        most_of_group=_MAX_EVENT_STREAMS * 3 // 4 if settings.require_key else None,
    )
    json_routes: list[re.Pattern[str]] = []
    add_middleware(
        server,
        hosts=settings.host_names or hosts,
        drain=server.state.drain,
        checks=_room_checks(services, networks),
        deadline_s=settings.deadline_s,
        json_routes=json_routes,
        most_json_bytes=settings.max_json_bytes,
        places=server.state.client_places,
        metrics=metrics,
        keys=server.state.keys,
        root=settings.root,
    )
    pages = Pages(services, settings)
    answer_errors(server, pages)
    add_infer_routes(server)
    for service in services.values():
        json_routes += _add_routes(server, service)
    server.include_router(repository.router)  # before a model's own routes: "stats" is no name there
    server.include_router(oip.router)
    server.include_router(pages.router())
    server.include_router(admin_router(pages))
    server.include_router(status.router)
    server.include_router(models_api.router)
    for ending, kind in _MEDIA_TYPES.items():
        mimetypes.add_type(kind, ending)
    server.mount("/static/shared", StaticFiles(directory=WEB / "static"))
    return server


def _limits(settings: Settings) -> dict[str, str]:
    """How much may be sent, in words, by the last part of the path."""
    form = f"At most {settings.max_upload_bytes:,} bytes and {settings.max_files:,} files"
    tensors = f"At most {settings.max_tensor_bytes:,} bytes, of them {settings.max_json_bytes:,} of JSON"
    answered = f"answered within {settings.deadline_s:g} seconds of the end of the upload"
    return {
        "predict": f"{form}; {answered}",
        "jobs": f"{form}; computed for {settings.job_deadline_s:g} seconds at the longest",
        "infer": f"{tensors}; {answered}",
    }


@asynccontextmanager
async def _grpc(server: FastAPI, settings: Settings) -> AsyncIterator[None]:
    """Answers over gRPC too where that is asked for; the port is then in the state as ``grpc_port``."""
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
    """Deletes what must not stay, at once and every hour."""
    while any(most is not None for most in (settings.keep_days, settings.keep_cases, settings.keep_bytes)):
        for service in services:
            await run_in_threadpool(service.expire)
        await asyncio.sleep(_EXPIRE_EVERY_S)


async def _empty_journal(engine: Engine) -> None:
    """Has what was deleted, as names of files of jobs that ended, leave the database's journal within seconds."""
    while True:
        try:
            await run_in_threadpool(empty_journal, engine)
        except SQLAlchemyError as error:
            log.warning("the journal of the store's database cannot be emptied: %s", error)
        await asyncio.sleep(_EMPTY_JOURNAL_EVERY_S)


def _room_checks(services: Mapping[str, Service], networks: Networks) -> dict[str, Callable[[str | None], None]]:
    """What says, by the path of a prediction, whether there is room for another of a group of keys."""

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
    """The routes that every application has, those of its domain, and the files of its pages.

    Returns what matches the paths of those of its domain of which FastAPI reads a body whole.
    """
    whole = []
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
                domain, prefix=prefix, tags=[app.name], responses=REFUSED, generate_unique_id_function=names
            )
            for route in domain.routes:
                field = route.body_field if isinstance(route, APIRoute) else None
                if isinstance(route, APIRoute) and field is not None and not isinstance(field.field_info, Form):
                    whole.append(compile_path(prefix + route.path)[0])
    if app.pages.is_dir():
        server.mount(f"/static/{app.name}", StaticFiles(directory=app.pages))
    return whole


def _registry(settings: Settings, apps: Iterable[App], live: Live) -> Registry:
    own = [] if settings.registry is None else [settings.registry]
    return Registry(*own, *(app.weights for app in apps), live=live.loading, retired=live.retired)


def _version() -> str:
    try:
        return version("trivium")
    except PackageNotFoundError:
        return "0"
