"""The server process: listens, reports its address, and shuts down gracefully on a signal."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import uvicorn

from shared.app import App
from shared.errors import InvalidInputError
from shared.secure.tls import Certificate, CertificateReloader, read_certificate
from shared.serve.app import create_app
from shared.serve.known_keys import KnownKeys
from shared.serve.log_lines import JsonLines
from shared.serve.middleware.accepted_hosts import accepted_hosts
from shared.serve.middleware.draining import Drain
from shared.serve.runtime.listener import Listener
from shared.serve.runtime.protocol import header_deadline_protocol
from shared.serve.service import Service
from shared.serve.settings import Settings

log = logging.getLogger("trivium.serve")
_SHUTDOWN_GRACE_S = 5
_TIME_FORMAT = "%Y-%m-%dT%H:%M:%S%z"
_DRAIN_POLL_INTERVAL_S = 0.05
_GC_THRESHOLD = 50_000
"""Net allocations that trigger Python's cyclic garbage collector; Python's default is 700."""

_GC_INTERVAL_TICKS = 600
"""The garbage collector also runs every minute; uvicorn ticks ten times a second."""
_CERTIFICATE_CHECK_TICKS = 100
"""The server checks for a renewed certificate every ten seconds."""


_MAX_OPEN_FILES = 1 << 16
_MAX_BACKLOG = 2048
"""Maximum listen backlog: asyncio accepts all pending connections before it serves any of them."""


def run(settings: Settings, demo: bool = False) -> None:
    """Serves until interrupted or terminated. ``demo`` prints the addresses to open and logs nothing below a warning.

    Raises ``InvalidInputError`` if the address is not available. If a predictor is still loading or computing when the
    shutdown timeouts have passed, the process exits with status 0 and this function does not return.
    """
    with _exit_cleanly_on_signals():
        _serve(settings, demo)
    _exit_despite_running_threads()


def _serve(settings: Settings, demo: bool) -> None:
    certificate = read_certificate(settings.tls_cert, settings.tls_key)
    if settings.grpc_port:
        listen(settings.host, settings.grpc_port, "--grpc-port").close()  # report a port in use before models load
    with listen(settings.host, settings.port) as listener:
        files = raise_open_file_limit()
        listener.max_idle = files // 2
        application = create_app(settings, hosts=accepted_hosts(settings.host))
        config = uvicorn.Config(
            application,
            log_config=log_config(quiet=demo, as_json=settings.log_json),
            log_level="warning" if demo else "info",
            http=header_deadline_protocol(settings.header_s, listener.idle),
            backlog=min(_MAX_BACKLOG, files // 4),
            ws="none",
            access_log=False,  # the middleware writes the access log
            timeout_graceful_shutdown=_SHUTDOWN_GRACE_S,
            ssl_certfile=None if certificate is None else certificate.chain,
            ssl_keyfile=None if certificate is None else certificate.key,
        )
        address = (
            f"{'http' if certificate is None else 'https'}://{_display_host(settings.host)}:{listener.getsockname()[1]}"
        )
        services: Mapping[str, Service] = application.state.services
        apps = {name: service.app for name, service in services.items()}
        server = _Server(
            config,
            announce=lambda: report_startup(address, apps, settings, application.state.keys, demo=demo),
            drain=application.state.drain,
            drain_s=settings.drain_s,
            certificate_reloader=None if certificate is None else CertificateReloader(certificate),
        )
        server.run(sockets=[listener])


def report_startup(
    address: str, apps: Mapping[str, App], settings: Settings, keys: KnownKeys | None, *, demo: bool
) -> None:
    """Reports the address that the server listens on, and warns about missing access control."""
    if demo:
        announce(address, apps)
    else:
        log.info("open %s", address)
    if keys is None and accepted_hosts(settings.host) is None:
        log.warning(
            "no key is required: anyone who can reach this machine over the network can read and delete cases and "
            "change models; set TRIVIUM_REQUIRE_KEY=true (`trivium keys add NAME` creates a key), or put a proxy that "
            "authenticates users in front"
        )
    if keys is not None and not keys.any():
        log.warning(
            "no key exists yet, so every request is refused; create one: `trivium keys add NAME --role operator`"
        )


def log_config(*, quiet: bool, as_json: bool = False) -> dict[str, Any]:
    """uvicorn's logging configuration with timestamps, extended by our loggers.

    The access log goes to stdout without a prefix; everything else goes where uvicorn's messages go. ``as_json`` writes
    every message as one line of JSON. ``quiet`` drops what is below a warning.
    """
    logs, level = copy.deepcopy(uvicorn.config.LOGGING_CONFIG), "WARNING" if quiet else "INFO"
    if not quiet:
        logs["formatters"]["default"] |= {"fmt": "%(asctime)s %(levelprefix)s %(message)s", "datefmt": _TIME_FORMAT}
    if as_json:
        logs["formatters"]["default"] = {"()": JsonLines}
    logs["handlers"]["plain"] = {"class": "logging.StreamHandler", "stream": "ext://sys.stdout"}
    logs["loggers"]["trivium.access"] = {"handlers": ["plain"], "level": level, "propagate": False}
    logs["loggers"]["trivium"] = {"handlers": ["default"], "level": level, "propagate": False}
    logs["root"] = {"handlers": ["default"], "level": "WARNING"}  # those of libraries, such as the database's driver
    return logs


@contextmanager
def _exit_cleanly_on_signals() -> Iterator[None]:
    """Leaves the block without an error on SIGINT and SIGTERM, which uvicorn raises again once it has shut down."""
    previous_handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, previous_handler)


def _exit_despite_running_threads() -> None:
    """Exits the process if threads are still loading or computing: nobody is waiting for their results any more."""
    end = time.monotonic() + 1
    other_threads = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
    with suppress(KeyboardInterrupt):
        for thread in other_threads:
            thread.join(max(0.0, end - time.monotonic()))
    if any(thread.is_alive() for thread in other_threads):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


class _Server(uvicorn.Server):
    """Calls ``announce`` once it listens. On shutdown, first answers the accepted requests, for at most ``drain_s``.

    It keeps listening meanwhile, so that new clients get a 503 with ``Retry-After``. A second signal ends the wait.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        announce: Callable[[], None],
        drain: Drain,
        drain_s: float,
        certificate_reloader: CertificateReloader | None = None,
    ) -> None:
        super().__init__(config)
        self._announce, self._drain, self._drain_s = announce, drain, drain_s
        self._certificate_reloader = certificate_reloader

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Records a signal. On a second Ctrl+C uvicorn would leave out the application's shutdown.

        The folders of workers, with unpacked uploads, would then stay. A third one still does that.
        """
        if len(self._captured_signals) == 1:
            self._captured_signals.append(sig)
        else:
            super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            reduce_garbage_collection()
            self._announce()

    async def on_tick(self, counter: int) -> bool:
        """Returns whether to shut down. Also collects garbage and loads a renewed certificate at their intervals.

        Reference cycles accumulate so slowly that the collector's threshold is rarely reached: memory grew for hours. A
        renewed certificate applies to new connections.
        """
        if counter and counter % _GC_INTERVAL_TICKS == 0:
            gc.collect()
        if self._certificate_reloader is not None and counter % _CERTIFICATE_CHECK_TICKS == 0:
            self._certificate_reloader.reload_if_changed(self._load_certificate)
        return await super().on_tick(counter)

    def _load_certificate(self, certificate: Certificate) -> None:
        assert self.config.ssl is not None
        self.config.ssl.load_cert_chain(certificate.chain, certificate.key)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers the accepted requests, then closes."""
        self._drain.is_draining = True
        end = time.monotonic() + self._drain_s
        if self._drain.running:
            log.info("answering %d open requests before shutting down", self._drain.running)
        while self._drain.running and time.monotonic() < end and len(self._captured_signals) < 2:
            await asyncio.sleep(_DRAIN_POLL_INTERVAL_S)
        await super().shutdown(sockets)


def raise_open_file_limit() -> int:
    """Raises this process's limit of open files and connections to the hard limit, at most 65,536, and returns it.

    At most half of the limit is for idle connections: above that, the longest idle ones are closed. A quarter is for
    connections that have just been accepted, the rest for everything else. At the limit, neither files nor the database
    can be opened.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < target:
        with suppress(OSError, ValueError):  # a system may allow less than it states
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
            soft = target
    return _MAX_OPEN_FILES if soft == resource.RLIM_INFINITY else soft


def reduce_garbage_collection() -> None:
    """Makes Python's garbage collector run rarely, and exempts the objects that exist now.

    A waiting request holds some hundred objects. With the default threshold the collector scanned those of a full queue
    again and again, which took a fifth of the server's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD, *gc.get_threshold()[1:])


def announce(address: str, apps: Mapping[str, App]) -> None:
    """Prints the addresses to open in a browser."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_row("Overview", address)
    for app in apps.values():
        table.add_row(app.title, f"{address}/{app.name}")
    table.add_row("JSON interface", f"{address}/docs")
    Console().print(Panel(table, title="Trivium is running", subtitle="Ctrl+C stops it", expand=False))


def listen(host: str, port: int, option: str = "--port") -> Listener:
    """A bound socket. Raises ``InvalidInputError`` if the address is not available; ``option`` sets the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only if the protocol is named; without it each small answer is delayed by 40 ms.
    listener = Listener(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise InvalidInputError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another port with {option}"
        ) from error
    return listener


def _display_host(host: str) -> str:
    if host in ("0.0.0.0", "::", ""):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
