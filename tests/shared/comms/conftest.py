"""A cluster of two hosts for the tests, made of network namespaces."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from multiprocessing import forkserver

import pytest

from shared.comms.shaped_network import Host, missing_privileges, shaped_network
from tests.shared.processes import PRELOAD


@pytest.fixture(scope="package")
def hosts() -> Iterator[list[Host]]:
    """Two hosts with 200 Mbit/s between them."""
    if reason := missing_privileges():
        pytest.skip(f"no network namespaces here: {reason}")
    # Set this before a job sets fewer modules: all jobs of a session share one fork server.
    multiprocessing.set_forkserver_preload([*PRELOAD, "tests.shared.comms.workers"])
    forkserver.ensure_running()
    with shaped_network(2, 200) as network_hosts:
        yield network_hosts
