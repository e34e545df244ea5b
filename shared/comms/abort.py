"""Aborts collectives of this process that cannot complete."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path

_OPEN_FILES = Path("/proc/self/fd")
_connections: set[str] = set()
"""The sockets of process groups by their unique kernel names (``socket:[1234]``)."""


@contextmanager
def connecting() -> Iterator[Callable[[], None]]:
    """Create process groups within this context: it records the connections to other processes that they open.

    It yields a function for another thread that makes torch leave its wait for the other processes' addresses: it shuts
    down all connections opened in this context, that to the store included.
    """
    before = set(_sockets())
    yield lambda: _shut_down(_sockets().keys() - before, keep_store=False)
    _connections.update(_sockets().keys() - before)


def abort_collectives() -> None:
    """Aborts the collectives in progress on all threads: each raises an error.

    NCCL supports this directly. Gloo's abort does nothing (torch 2.14), and a gloo collective waits for the whole
    timeout while the other side is silent; it fails at once if its connections are shut down.
    """
    from torch.distributed import distributed_c10d

    for group in list(distributed_c10d._world.pg_map):
        with suppress(RuntimeError):
            group.abort()
    # Keep the connection to the store, through which the other processes learn the cause.
    _shut_down(_connections, keep_store=True)


def _shut_down(connections: Set[str], *, keep_store: bool) -> None:
    """Shuts the sockets down, but for those of the job's store if it is in this process, and of its client if kept."""
    store_port = os.environ.get("MASTER_PORT", "")
    for name, descriptor in _sockets().items():
        if name in connections:
            with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
                to_store = _port(connection, peer=True) == store_port
                if _port(connection) != store_port and not (to_store and keep_store):
                    connection.shutdown(socket.SHUT_RDWR)


def _port(connection: socket.socket, *, peer: bool = False) -> str:
    address = connection.getpeername() if peer else connection.getsockname()
    return str(address[1]) if isinstance(address, tuple) else ""


def _sockets() -> dict[str, int]:
    """This process's sockets with their file descriptors; empty if there is no /proc."""
    found: dict[str, int] = {}
    with suppress(OSError):
        for entry in _OPEN_FILES.iterdir():
            with suppress(OSError):
                name = str(entry.readlink())
                if name.startswith("socket:"):
                    found[name] = int(entry.name)
    return found
