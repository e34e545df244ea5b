"""The server: applications found, put behind their queues, and served."""

from __future__ import annotations

import logging
import mimetypes
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from shared.app import App, installed
from shared.deploy.registry import Registry
from shared.errors import InvalidInputError
from shared.serve.admission import Busy, Workers
from shared.serve.guard import Guard, error_body, own_hosts, wants_page
from shared.serve.metrics import CONTENT_TYPE, Metrics
from shared.serve.networks import Networks
from shared.serve.pages import WEB, Pages
from shared.serve.protocol import protocol
from shared.serve.readiness import Readiness
from shared.serve.routes import routes
from shared.serve.service import Service
from shared.serve.settings import Settings
from shared.serve.waiting import discard
from shared.store.cases import CaseStore

log = logging.getLogger("trivium.serve")
_GRACE_S = 5
_HEADINGS = {404: "There is no such page", 405: "This cannot be done here", 503: "Not available at the moment"}


def create_app(
    settings: Settings, apps: Mapping[str, App] | None = None, hosts: Collection[str] | None = None
) -> FastAPI:
    """The server as an ASGI application, for the installed applications or for those given.

    It answers under the names that the settings give, else under ``hosts``, any where that is None: what it is asked
    under follows from where it listens.
    """
    found = dict(installed() if apps is None else apps)
    for ending, kind in {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm"}.items():
        mimetypes.add_type(kind, ending)
    registry = _registry(settings, found.values())
    metrics = Metrics()
    store = CaseStore(settings.store, settings.store_url)
    # What a server that was killed had not finished receiving; the store is this server's alone.
    shutil.rmtree(settings.store / "incoming", ignore_errors=True)
    services = {name: Service(app, registry, settings, store, metrics) for name, app in found.items()}
    networks = Networks(registry, settings, metrics)
    pages = Pages(services, settings)
    readiness = Readiness([*services.values(), *networks.all()], settings.warm)
    tensors = Workers("tensors")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        readiness.start()
        yield
        readiness.stop()
        for service in services.values():
            service.close()
        networks.close()
        tensors.close()
        store.close()

    server = _Described(
        title="Trivium",
        version=_version(),
        summary="Lung nodules in chest CT, 3D object detection, anomalies in financial time series.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    server.state.services = services
    named = [] if settings.hosts is None else [one.strip().lower() for one in settings.hosts.split(",") if one.strip()]
    server.add_middleware(Guard, hosts=named or hosts)
    _answer_errors(server, pages)
    for service in services.values():
        server.include_router(routes(service))
        if service.app.router is not None:
            try:
                extra = service.app.router(service)
            except Exception:
                log.exception("the routes of %s are left out", service.app.name)
                continue
            server.include_router(extra, prefix=f"/api/{service.app.name}", tags=[service.app.title])
        if service.app.pages.is_dir():
            server.mount(f"/static/{service.app.name}", StaticFiles(directory=service.app.pages))
    server.mount("/static/shared", StaticFiles(directory=WEB / "static"))
    server.include_router(protocol(networks, settings, readiness.ready, server.version, tensors))
    server.include_router(pages.router())

    @server.get("/metrics", tags=["Server"], operation_id="metrics", response_class=Response)
    async def exposition() -> Response:
        """Counters and gauges in Prometheus' text format, under Triton's names."""
        return Response(metrics.exposition(), media_type=CONTENT_TYPE)

    @server.get("/healthz", tags=["Server"], operation_id="healthz")
    async def health() -> dict[str, Any]:
        """Whether the server runs, and the state of each predictor."""
        return {"status": "ok", "version": server.version, "apps": {n: await _state(s) for n, s in services.items()}}

    return server


def _registry(settings: Settings, apps: Iterable[App]) -> Registry:
    if settings.registry is not None and not settings.registry.is_dir():
        raise InvalidInputError(
            f"the registry {settings.registry} is not a folder; `trivium export RUN --registry DIR` makes one"
        )
    own = [] if settings.registry is None else [settings.registry]
    return Registry(*own, *(app.weights for app in apps))


def run(settings: Settings, demo: bool = False) -> None:
    """Serves until interrupted or told to end. With ``demo``, says in the terminal what to open and is quiet otherwise.

    Refuses an address that cannot be had. Where a predictor is loaded or computes still when requests have had their
    time to end, the process ends with status 0 and this does not return.
    """
    with _until_signalled():
        _serve(settings, demo)
    _leave_threads_behind()


def _serve(settings: Settings, demo: bool) -> None:
    listener = listen(settings.host, settings.port)
    application = create_app(settings, hosts=own_hosts(settings.host))
    logs = uvicorn.config.LOGGING_CONFIG
    handler = {"trivium": {"handlers": ["default"], "level": "WARNING" if demo else "INFO", "propagate": False}}
    config = uvicorn.Config(
        application,
        log_config={**logs, "loggers": {**logs["loggers"], **handler}},
        log_level="warning" if demo else "info",
        timeout_graceful_shutdown=_GRACE_S,
    )
    address = f"http://{_shown(settings.host)}:{listener.getsockname()[1]}"
    services: Mapping[str, Service] = application.state.services
    apps = {name: service.app for name, service in services.items()}
    server = _Announcing(config, address, apps) if demo else uvicorn.Server(config)
    with listener:
        server.run(sockets=[listener])


@contextmanager
def _until_signalled() -> Iterator[None]:
    """Lets SIGINT and SIGTERM end what is inside without an error: uvicorn raises them again once it has closed."""
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _leave_threads_behind() -> None:
    """Ends the process where threads go on: nobody waits any more for what they load or compute."""
    end = time.monotonic() + 1
    others = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
    with suppress(KeyboardInterrupt):
        for thread in others:
            thread.join(max(0.0, end - time.monotonic()))
    if any(thread.is_alive() for thread in others):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


class _Described(FastAPI):
    """Heads every route in the description with the first line of its docstring, not with a function's name."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        for operation in (one for path in document["paths"].values() for one in path.values()):
            if lines := operation.get("description", "").splitlines():
                operation["summary"] = lines[0].rstrip(".")
        return document


class _Announcing(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, address: str, apps: Mapping[str, App]) -> None:
        super().__init__(config)
        self._address, self._apps = address, apps

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts, and says so once it listens."""
        await super().startup(sockets)
        if self.started:
            announce(self._address, self._apps)


def announce(address: str, apps: Mapping[str, App]) -> None:
    """Prints what to open."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table

    rows = Table.grid(padding=(0, 2))
    rows.add_row("Overview", address)
    for app in apps.values():
        rows.add_row(app.title, f"{address}/{app.name}")
    rows.add_row("JSON interface", f"{address}/docs")
    Console().print(Panel(rows, title="Trivium is running", subtitle="Ctrl+C stops it", expand=False))


def _answer_errors(server: FastAPI, pages: Pages) -> None:
    def answer(request: Request, sentence: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
        # A request may hold halves of characters, which no answer can.
        sentence = sentence.encode(errors="backslashreplace").decode()
        if wants_page(request.scope):
            response: Response = pages.error(_HEADINGS.get(status, "This did not work"), sentence, status)
        else:
            response = JSONResponse(error_body(request.url.path, sentence), status)
        response.headers.update(headers or {})
        return response

    @server.exception_handler(InvalidInputError)
    async def refuse(request: Request, refusal: InvalidInputError) -> Response:
        await discard(request)
        headers = {"Retry-After": str(refusal.retry_after_s)} if isinstance(refusal, Busy) else None
        return answer(request, str(refusal), refusal.status, headers)

    @server.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        unknown = f"there is nothing at {request.url.path}"
        sentence = unknown if error.status_code == 404 and error.detail == "Not Found" else str(error.detail)
        return answer(request, sentence, error.status_code, error.headers)

    @server.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        return answer(request, f"the request cannot be read: {faults}", 422)


async def _state(service: Service) -> dict[str, Any]:
    # Only a predictor that is loaded knows its manifests without reading files.
    manifests = service.manifests if service.loaded else await run_in_threadpool(lambda: service.manifests)
    return {
        "predictor": "loaded" if service.loaded else "failed" if service.failure else "not loaded",
        "failure": service.failure,
        "artifacts": [{"name": manifest.name, "version": manifest.version} for manifest in manifests],
    }


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; refuses an address that cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio sends small answers at once (TCP_NODELAY); otherwise each waits for 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise InvalidInputError(
            f"{host}:{port} cannot be listened on ({error.strerror}); choose another with --port"
        ) from error
    return listener


def _shown(host: str) -> str:
    if host in ("0.0.0.0", "::", ""):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _version() -> str:
    try:
        return version("trivium")
    except PackageNotFoundError:
        return "0"
