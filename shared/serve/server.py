"""The server as a process: it listens, says so, and ends when it is told to."""

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
from typing import Any

import uvicorn

from shared.app import App
from shared.errors import InvalidInputError
from shared.secure.tls import Certificate, Renewals, read_certificate
from shared.serve.app import create_app
from shared.serve.known_keys import KnownKeys
from shared.serve.log_lines import JsonLines
from shared.serve.middleware.draining import Drain
from shared.serve.middleware.own_hosts import own_hosts
from shared.serve.runtime.listener import Listener
from shared.serve.runtime.protocol import with_header_deadline
from shared.serve.service import Service
from shared.serve.settings import Settings

log = logging.getLogger("trivium.serve")
_GRACE_S = 5
_TIME = "%Y-%m-%dT%H:%M:%S%z"
_POLL_S = 0.05
_COLLECT_AFTER = 50_000
"""Objects made and not freed, after which Python's collector looks for cycles; 700 are its own default."""

_COLLECT_TICKS = 600
"""It looks for them every minute as well; uvicorn ticks ten times a second."""
_RENEW_TICKS = 100
"""And every ten seconds for a new certificate."""


_MAX_FILES = 1 << 16
_BACKLOG = 2048
"""Connections that are accepted at once, at the most: asyncio takes all that wait before any is looked at."""


def run(settings: Settings, demo: bool = False) -> None:
    """Serves until interrupted or told to end. With ``demo``, says in the terminal what to open and is quiet otherwise.

    Refuses an address that cannot be had. Where a predictor is loaded or computes still when requests have had their
    time to end, the process ends with status 0 and this does not return.
    """
    with _ended_by_signals():
        _serve(settings, demo)
    _end_with_threads()


def _serve(settings: Settings, demo: bool) -> None:
    certificate = read_certificate(settings.tls_cert, settings.tls_key)
    if settings.grpc_port:
        listen(settings.host, settings.grpc_port, "--grpc-port").close()  # refused in a sentence, before models load
    with listen(settings.host, settings.port) as listener:
        files = allow_files()
        listener.most = files // 2
        application = create_app(settings, hosts=own_hosts(settings.host))
        config = uvicorn.Config(
            application,
            log_config=log_config(quiet=demo, as_json=settings.log_json),
            log_level="warning" if demo else "info",
            http=with_header_deadline(settings.header_s, listener.idle),
            backlog=min(_BACKLOG, files // 4),
            ws="none",
            access_log=False,  # the middleware writes its own
            timeout_graceful_shutdown=_GRACE_S,
            ssl_certfile=None if certificate is None else certificate.chain,
            ssl_keyfile=None if certificate is None else certificate.key,
        )
        address = f"{'http' if certificate is None else 'https'}://{_shown(settings.host)}:{listener.getsockname()[1]}"
        services: Mapping[str, Service] = application.state.services
        apps = {name: service.app for name, service in services.items()}
        server = _Server(
            config,
            announce=lambda: say_listening(address, apps, settings, application.state.keys, demo=demo),
            drain=application.state.drain,
            drain_s=settings.drain_s,
            renewals=None if certificate is None else Renewals(certificate),
        )
        server.run(sockets=[listener])


def say_listening(
    address: str, apps: Mapping[str, App], settings: Settings, keys: KnownKeys | None, *, demo: bool
) -> None:
    """Says that the server listens, and what whoever looks after it should know."""
    if demo:
        announce(address, apps)
    else:
        log.info("open %s", address)
    if keys is None and own_hosts(settings.host) is None:
        log.warning(
            "no key is required: whoever reaches this machine's network address may read and delete cases and change "
            "models; set TRIVIUM_REQUIRE_KEY=true (`trivium keys add NAME` makes a key), or have a proxy ask who it is"
        )
    if keys is not None and not keys.any():
        log.warning("there is no key yet, so nobody is let in; `trivium keys add NAME --role operator` makes one")


def log_config(*, quiet: bool, as_json: bool = False) -> dict[str, Any]:
    """uvicorn's, with the time before each message, and our own: answers as plain lines on stdout, the rest as its.

    Or all ``as_json``, a line each.
    """
    logs, level = copy.deepcopy(uvicorn.config.LOGGING_CONFIG), "WARNING" if quiet else "INFO"
    if not quiet:
        logs["formatters"]["default"] |= {"fmt": "%(asctime)s %(levelprefix)s %(message)s", "datefmt": _TIME}
    if as_json:
        logs["formatters"]["default"] = {"()": JsonLines}
    logs["handlers"]["plain"] = {"class": "logging.StreamHandler", "stream": "ext://sys.stdout"}
    logs["loggers"]["trivium.access"] = {"handlers": ["plain"], "level": level, "propagate": False}
    logs["loggers"]["trivium"] = {"handlers": ["default"], "level": level, "propagate": False}
    return logs


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Lets SIGINT and SIGTERM end what is inside without an error: uvicorn raises them again once it has closed."""
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _end_with_threads() -> None:
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


class _Server(uvicorn.Server):
    """Calls ``announce`` once it listens. Told to end, it answers first what it accepted, for at most ``drain_s``.

    Meanwhile it listens still, so that who asks is told to come again. A second signal ends the wait.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        announce: Callable[[], None],
        drain: Drain,
        drain_s: float,
        renewals: Renewals | None = None,
    ) -> None:
        super().__init__(config)
        self._announce, self._drain, self._drain_s, self._renewals = announce, drain, drain_s, renewals

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts, and says so."""
        await super().startup(sockets)
        if self.started:
            collect_rarely()
            self._announce()

    async def on_tick(self, counter: int) -> bool:
        """Whether to end. Frees what refers to itself now and then: it comes so slowly that memory grew for hours.

        A certificate that was renewed is shown to who connects from then on.
        """
        if counter and counter % _COLLECT_TICKS == 0:
            gc.collect()
        if self._renewals is not None and counter % _RENEW_TICKS == 0:
            self._renewals.take_up(self._show)
        return await super().on_tick(counter)

    def _show(self, certificate: Certificate) -> None:
        assert self.config.ssl is not None
        self.config.ssl.load_cert_chain(certificate.chain, certificate.key)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers what was accepted, then closes."""
        self._drain.begun = True
        end = time.monotonic() + self._drain_s
        if self._drain.inside:
            log.info("answering %d requests, then ending", self._drain.inside)
        while self._drain.inside and time.monotonic() < end and len(self._captured_signals) < 2:
            await asyncio.sleep(_POLL_S)
        await super().shutdown(sockets)


def allow_files() -> int:
    """How many files and connections this process may have open: as many as it may allow itself, up to 65,536.

    Beyond half of them, idle connections give way; a quarter is for those that are just accepted, the rest for all
    else. Out of them, neither files nor the database could be opened.
    """
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_FILES if most == resource.RLIM_INFINITY else min(most, _MAX_FILES)
    if now != resource.RLIM_INFINITY and now < wanted:
        with suppress(OSError, ValueError):  # a system may allow less than it states
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
            now = wanted
    return _MAX_FILES if now == resource.RLIM_INFINITY else now


def collect_rarely() -> None:
    """Has Python's collector go through what requests make only now and then.

    What there is now stays and is not gone through again. Requests that wait hold some hundred objects each: at the
    default threshold those of a full queue were gone through over and over, a fifth of the server's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, *gc.get_threshold()[1:])


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


def listen(host: str, port: int, option: str = "--port") -> Listener:
    """A bound socket; refuses an address that cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio sends small answers at once (TCP_NODELAY); otherwise each waits for 40 ms.
    listener = Listener(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise InvalidInputError(
            f"{host}:{port} cannot be listened on ({error.strerror}); choose another with {option}"
        ) from error
    return listener


def _shown(host: str) -> str:
    if host in ("0.0.0.0", "::", ""):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
