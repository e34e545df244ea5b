"""Aborts collectives of this process that cannot complete."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_OPEN_FILES = Path("/proc/self/fd")
_connections: set[str] = set()
"""The sockets of process groups by their unique kernel names (``socket:[1234]``)."""


@contextmanager
def connecting() -> Iterator[None]:
    """Create process groups within this context: it records the connections to other processes that they open."""
    before = set(_sockets())
    yield
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
    for name, descriptor in _sockets().items():
        if name in _connections:
            with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
                # Keep the connection to the store, through which the other processes learn the cause.
                if os.environ.get("MASTER_PORT", "") not in (_port(connection), _port(connection, peer=True)):
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
