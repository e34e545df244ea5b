"""``trivium gateway``: sends cases from the domain's own network to a running server, and returns its answers."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import warnings
from collections.abc import Sequence

import tyro

from shared.app import find
from shared.cli.arguments import Gateway
from shared.errors import InvalidInputError
from shared.job_client import JobClient, credentials


def run(command: Gateway, settings: Sequence[str]) -> int:
    """Runs the application's gateway until it is interrupted."""
    app = find(command.app)
    if app.gateway is None:
        raise InvalidInputError(
            f"{app.name} has no gateway; send its cases to a server over HTTP as docs/integrators.md describes"
        )
    try:
        gateway_class = app.gateway()
        gateway = tyro.cli(gateway_class, args=list(settings), prog=f"trivium gateway {app.name}")
        jobs = JobClient(command.server, app.name, credentials())
        stop = threading.Event()
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signal_number, lambda *_: stop.set())
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        warnings.simplefilter("ignore")  # libraries quote values in their warnings, which may identify a patient
        gateway.run(jobs, command.spool, stop)
    except ModuleNotFoundError as error:
        raise InvalidInputError(f"the gateway needs the package {error.name}; install trivium[{app.name}]") from error
    return 0
